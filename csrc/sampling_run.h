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
    if (threads == 1) return 1;
    if (team_.calls < kTrials || team_.cost < kGood) return threads;
    if (solo_.calls == 0) return 1;
    const bool team = team_.cost <= solo_.cost;
    const bool other = calls_ - tried_ >= patience_;
    return team != other ? threads : 1;
  }

  // A call took so many nanoseconds; one thread was expected to take `expected`.
  void note(int threads, double ns, double expected) {
    Way& way = threads == 1 ? solo_ : team_;
    Way& other = threads == 1 ? team_ : solo_;
    const bool was_better = way.calls > 0 && other.calls > 0 && way.cost <= other.cost;
    const double cost = ns / expected;
    // The first call of a kind finds caches cold and threads asleep.
    way.cost = way.calls < kTrials ? cost : 0.5 * (way.cost + cost);
    ++way.calls;
    ++calls_;
    if (was_better || other.calls == 0) return;
    // What was slower has been tried, and less often so if it is slower still.
    tried_ = calls_;
    patience_ = way.cost <= other.cost ? kPatience : 2 * patience_;
  }

 private:
  // As fast as this beside the estimate of one thread, nothing else is tried.
  static constexpr double kGood = 0.65;
  static constexpr int64_t kTrials = 2, kPatience = 8;
  struct Way {
    double cost = 0;  // time taken by time expected
    int64_t calls = 0;
  };
  Way team_, solo_;
  int64_t calls_ = 0, tried_ = 0, patience_ = kPatience;
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
  bool team() const { return team_ > 1; }
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
  int team_;  // threads that work on all images together; 1: each on images of its own
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
