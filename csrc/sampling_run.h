// One pass over the images of a batch: its caches, its position in the scan, its threads.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "csrc/sampling_draw.h"

namespace genfast::sampling {

// Whether a team is worth having is measured as a run goes on: estimates know nothing of cores that
// are busy with something else, where a team waits for its slowest member at every step.
class Crew {
 public:
  // How many threads the next call takes, of those it may.
  int choose(int threads) const {
    if (threads == 1 || team_ < kGood) return threads;
    return solo_ == 0 || solo_ < team_ ? 1 : threads;
  }

  // A call took so many nanoseconds; one thread was expected to take `expected`.
  void note(int threads, double ns, double expected) {
    double& mean = threads == 1 ? solo_ : team_;
    const double cost = ns / expected;
    mean = mean == 0 ? cost : 0.5 * (mean + cost);
  }

 private:
  // As fast as this beside the estimate of one thread, nothing else is tried.
  static constexpr double kGood = 0.7;
  double team_ = 0, solo_ = 0;  // time taken by time expected; 0: not tried
};

template <typename scalar_t>
class Run {
 public:
  Run(std::shared_ptr<const Plan<scalar_t>> plan, int64_t n, int threads,
      const std::vector<Condition<scalar_t>>& conditions);

  struct Position {
    int64_t draw, row, column;
    bool done;
  };
  Position position() const;

  // Whether the model predicts the next draw at all.
  bool has_parameters() const;

  // Runs up to the next draw and writes its parameters [n, parameters].
  void parameters(scalar_t* to, int threads);

  // Writes the symbols of the draw at `position`, as the model sees them: [n, count * encoded].
  void supply(const scalar_t* encoded);

  // The whole image with given symbols x [n, colours * encoded, height, width]; parameters of
  // each draw go to out[draw] [n, height, width, parameters].
  void forced(const scalar_t* x, const std::vector<scalar_t*>& out, int threads);

  // Draws the next `units`: rows, or spans of an image of one row.
  void sample(const DrawJob<scalar_t>& job, int64_t units, int threads);

  int64_t n() const { return n_; }
  bool team() const { return team_; }
  size_t bytes() const;
  const Plan<scalar_t>& plan() const { return *plan_; }

 private:
  // Calls function(worker, block, member) so that every block is worked on: by one thread each, or
  // by all.
  template <typename Function>
  void parallel(int threads, double ns, Function function);
  template <typename DrawAt>
  void scan(Worker<scalar_t>& worker, const Block<scalar_t>& block, int64_t row, int64_t column,
            int64_t row_end, int64_t column_end, DrawAt draw_at) const;
  void prepare(int threads);
  void check_indices();
  void require_position(bool condition, const char* rule) const;

  std::shared_ptr<const Plan<scalar_t>> plan_;
  const int64_t n_;
  bool team_;
  Crew crew_;
  double total_ns_;
  std::vector<Block<scalar_t>> blocks_;
  // Position: everything before draw d of (r, c) is drawn; `ready_`: its parameters are computed.
  int64_t row_ = 0, column_ = 0;
  size_t draw_ = 0;
  bool ready_ = false;
  // For the number of threads used last.
  std::unique_ptr<Arrangement<scalar_t>> arrangement_;
  std::unique_ptr<Barrier> barrier_;
  std::vector<std::unique_ptr<Worker<scalar_t>>> workers_;
};

}  // namespace genfast::sampling
