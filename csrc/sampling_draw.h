// Symbols from the parameters of a draw, and what the model sees of them.
#pragma once

#include <compare>
#include <cstdint>
#include <stdexcept>

#include "csrc/sampling_worker.h"
#include "kernels/sampling_draw.h"

namespace genfast::sampling {

// Parameters of a draw that are no distribution.
struct NumericsError : std::runtime_error {
  using std::runtime_error::runtime_error;
};

// What sampling reads and writes; n images of `colours` symbols. Symbols are levels or numbers, as
// the rule says; the pointers to the other kind are null.
template <typename scalar_t>
struct DrawJob {
  cpu::DrawRule rule;
  double temperature;
  double start;        // the symbol where there are no parameters
  const float* noise;  // [n, colours / rule.count * rule.uniforms, height, width]
  // [n, colours, height, width]; the model sees numbers as they are, and values [rule.levels,
  // encoded] of levels.
  scalar_t* numbers = nullptr;
  int32_t* levels = nullptr;
  const scalar_t* values = nullptr;
  const bool* known_mask = nullptr;  // [n, colours, height, width]: which are given; null: none
  double* log_probs = nullptr;       // [n], added to; null: not wanted
};

// Where parameters were no distribution: the first such draw in the order of drawing.
struct Fault {
  int64_t row = -1, column = 0, colour = 0, image = 0;

  auto operator<=>(const Fault&) const = default;
  void note(const Fault& other) {
    if (other.row >= 0 && (row < 0 || other < *this)) *this = other;
  }
  // Throws a NumericsError that names the place, if there is one.
  void raise() const;
};

// Does the draws of a job, for all threads.
template <typename scalar_t>
class Drawer {
 public:
  // Throws a std::logic_error where the plan's draws have not the parameters that the rule takes.
  Drawer(const Plan<scalar_t>& plan, const DrawJob<scalar_t>& job);

  // Draw d of the pixel (r, c) of a block's images; every member of a team calls it.
  void draw(Worker<scalar_t>& worker, const Block<scalar_t>& block, size_t d, int64_t r, int64_t c,
            Fault& fault) const;

 private:
  // The symbols of an image from `first` on that are drawn together; without parameters: null.
  // Returns false where these are no distribution.
  bool draw_symbols(const scalar_t* parameters, double* scratch, int64_t image, int64_t first,
                    int64_t pixel, double* symbols) const;
  // Keeps a symbol, and writes what the model sees of it.
  void store(double symbol, int64_t at, scalar_t* seen) const;
  int64_t index(int64_t image, int64_t colour, int64_t pixel) const {
    return (image * plan_.colours + colour) * plane_ + pixel;
  }

  const Plan<scalar_t>& plan_;
  const DrawJob<scalar_t>& job_;
  const int64_t plane_;
  const cpu::DrawKernels<scalar_t> kernels_;
};

}  // namespace genfast::sampling
