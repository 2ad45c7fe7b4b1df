#include "csrc/sampling_run.h"

#include <algorithm>
#include <chrono>

namespace genfast::sampling {
namespace {

// Waking a thread costs up to tens of microseconds: what a call must have to do for each.
constexpr double kThreadNs = 50e3;
// Spans of a sound that one call covers where the whole is given.
constexpr int64_t kForcedSpans = 64;

double now_ns() {
  using Clock = std::chrono::steady_clock;
  return std::chrono::duration<double, std::nano>(Clock::now().time_since_epoch()).count();
}

}  // namespace

template <typename scalar_t>
Run<scalar_t>::Run(std::shared_ptr<const Plan<scalar_t>> plan, int64_t n, int threads,
                   const std::vector<Condition<scalar_t>>& conditions)
    : plan_(std::move(plan)),
      n_(n),
      team_(team_size(*plan_, n, threads)),
      total_ns_(estimate(*plan_, n)) {
  const int64_t count = team() ? 1 : std::min<int64_t>(n, threads);
  blocks_.reserve(static_cast<size_t>(count));
  for (int64_t b = 0; b < count; ++b) {
    const int64_t begin = n * b / count, end = n * (b + 1) / count;
    blocks_.emplace_back(*plan_, begin, end - begin, conditions);
  }
}

template <typename scalar_t>
size_t Run<scalar_t>::bytes() const {
  size_t bytes = 0;
  for (const Block<scalar_t>& block : blocks_) bytes += block.memory.bytes();
  return bytes;
}

template <typename scalar_t>
void Run<scalar_t>::require_position(bool condition, const char* rule) const {
  if (!condition) throw std::logic_error(std::string("sampling run: expected ") + rule);
}

template <typename scalar_t>
typename Run<scalar_t>::Position Run<scalar_t>::position() const {
  int64_t row = row_, column = column_;
  size_t draw = draw_;
  if (draw == plan_->draws.size()) {
    draw = 0;
    if (++column == plan_->width) {
      column = 0;
      ++row;
    }
  }
  return {static_cast<int64_t>(draw), row, column, row == plan_->height};
}

template <typename scalar_t>
void Run<scalar_t>::prepare(int threads) {
  if (arrangement_ != nullptr && static_cast<int>(workers_.size()) == threads) return;
  workers_.clear();
  const int members = team() ? threads : 1;
  arrangement_ = std::make_unique<Arrangement<scalar_t>>(
      arrange(*plan_, team() ? n_ : blocks_.front().n, members));
  barrier_ = std::make_unique<Barrier>(members);
  for (int t = 0; t < threads; ++t) {
    workers_.push_back(
        std::make_unique<Worker<scalar_t>>(*plan_, *arrangement_, team() ? t : 0, barrier_.get()));
  }
}

template <typename scalar_t>
template <typename Function>
void Run<scalar_t>::parallel(int threads, double ns, Function function) {
  const int useful = static_cast<int>(std::clamp(ns / kThreadNs, 1.0, 1024.0));
  threads = std::max(1, sharing_everything() ? threads : std::min(threads, useful));
  if (!team()) threads = std::min(threads, static_cast<int>(blocks_.size()));
  if (team() && !sharing_everything()) threads = crew_.choose(std::min(threads, team_));
  const double begin = now_ns();
  while (true) {
    prepare(threads);
    for (auto& worker : workers_) worker->start();
    const bool complete = run_team(threads, [&](int member) {
      Worker<scalar_t>& worker = *workers_[static_cast<size_t>(member)];
      if (team()) {
        function(worker, blocks_.front(), member);
        return;
      }
      for (size_t b = static_cast<size_t>(member); b < blocks_.size();
           b += static_cast<size_t>(threads)) {
        function(worker, blocks_[b], member);
      }
    });
    if (complete) break;
    threads = 1;
  }
  crew_.note(threads, now_ns() - begin, ns);
  check_indices();
}

template <typename scalar_t>
void Run<scalar_t>::check_indices() {
  for (const auto& worker : workers_) {
    if (worker->bad_index()) {
      throw std::out_of_range(
          "sampling run: expected indices of an embedding within its rows, got one outside");
    }
  }
}

template <typename scalar_t>
bool Run<scalar_t>::has_parameters() const {
  const Position next = position();
  if (next.done) return false;
  return blocks_.front().has(plan_->draws[static_cast<size_t>(next.draw)], next.row, next.column);
}

template <typename scalar_t>
void Run<scalar_t>::parameters(scalar_t* to, int threads) {
  const Position next = position();
  require_position(!next.done, "a pixel that is not drawn yet, got the end of the image");
  const double pixel_ns = total_ns_ / static_cast<double>(plan_->height * plan_->width);
  if (!ready_) {
    const bool span_begins = next.draw == 0 && next.column % plan_->span == 0;
    const double span_ns = pixel_ns * static_cast<double>(std::min(plan_->span, plan_->width));
    parallel(threads, span_begins ? span_ns : pixel_ns, [&](auto& worker, const auto& block, int) {
      if (draw_ == plan_->draws.size()) {
        worker.run_list(block, 1 + draw_, row_, column_, column_ + 1);
      }
      if (span_begins) {
        const int64_t end = std::min(next.column + plan_->span, plan_->width);
        worker.run_list(block, 0, next.row, next.column, end);
      }
      worker.run_list(block, 1 + static_cast<size_t>(next.draw), next.row, next.column,
                      next.column + 1);
    });
    row_ = next.row;
    column_ = next.column;
    draw_ = static_cast<size_t>(next.draw);
    ready_ = true;
  }
  prepare(std::max<int>(1, static_cast<int>(workers_.size())));
  Worker<scalar_t>& worker = *workers_.front();
  const Draw<scalar_t>& draw = plan_->draws[draw_];
  for (const Block<scalar_t>& block : blocks_) {
    for (int64_t b = 0; b < block.n; ++b) {
      const scalar_t* from = worker.parameters(block, draw, row_, column_, b);
      std::copy_n(from, draw.parameters, to + (block.first + b) * draw.parameters);
    }
  }
}

template <typename scalar_t>
void Run<scalar_t>::supply(const scalar_t* encoded) {
  const Position next = position();
  require_position(!next.done, "a pixel that is not drawn yet, got the end of the image");
  require_position(ready_, "parameters() before supply()");
  const Draw<scalar_t>& draw = plan_->draws[draw_];
  const int64_t count = draw.count * plan_->encoded;
  for (const Block<scalar_t>& block : blocks_) {
    for (int64_t b = 0; b < block.n; ++b) {
      scalar_t* to =
          block.out(0, draw.first * plan_->encoded, row_, column_) + b * block.image_stride(0);
      std::copy_n(encoded + (block.first + b) * count, count, to);
    }
  }
  ++draw_;
  ready_ = false;
}

// The whole scan of some rows, or of some columns of one row, with all of its draws.
template <typename scalar_t>
template <typename DrawAt>
void Run<scalar_t>::scan(Worker<scalar_t>& worker, const Block<scalar_t>& block, int64_t row,
                         int64_t column, int64_t row_end, int64_t column_end,
                         DrawAt draw_at) const {
  for (int64_t r = row; r < row_end; ++r) {
    for (int64_t c0 = column; c0 < column_end; c0 += plan_->span) {
      const int64_t c1 = std::min(c0 + plan_->span, plan_->width);
      worker.run_list(block, 0, r, c0, c1);
      for (int64_t c = c0; c < c1; ++c) {
        for (size_t d = 0; d < plan_->draws.size(); ++d) {
          worker.run_list(block, 1 + d, r, c, c + 1);
          draw_at(d, r, c);
        }
        worker.run_list(block, 1 + plan_->draws.size(), r, c, c + 1);
      }
    }
  }
}

template <typename scalar_t>
void Run<scalar_t>::forced(const scalar_t* x, const std::vector<scalar_t*>& out, int threads) {
  require_position(row_ == 0 && column_ == 0 && draw_ == 0 && !ready_, "a run that has just begun");
  const int64_t H = plan_->height, W = plan_->width, features = plan_->colours * plan_->encoded;
  const auto draw_given = [&](auto& worker, const auto& block) {
    return [&](size_t d, int64_t r, int64_t c) {
      worker.settle(false);
      if (worker.member() == 0) {
        const Draw<scalar_t>& draw = plan_->draws[d];
        for (int64_t b = 0; b < block.n; ++b) {
          const int64_t image = block.first + b;
          const scalar_t* from = worker.parameters(block, draw, r, c, b);
          std::copy_n(from, draw.parameters, out[d] + ((image * H + r) * W + c) * draw.parameters);
          const int64_t first = draw.first * plan_->encoded;
          scalar_t* to = block.out(0, first, r, c) + b * block.image_stride(0);
          for (int64_t f = 0; f < draw.count * plan_->encoded; ++f) {
            to[f] = x[((image * features + first + f) * H + r) * W + c];
          }
        }
      }
      worker.wrote(false);
    };
  };
  const int64_t step = H == 1 ? kForcedSpans * plan_->span : W;
  const double ns = total_ns_ * static_cast<double>(std::min(step, W)) / static_cast<double>(H * W);
  for (int64_t row = 0; row < H; ++row) {
    for (int64_t column = 0; column < W; column += step) {
      parallel(threads, ns, [&](auto& worker, const auto& block, int) {
        const int64_t end = std::min(column + step, W);
        scan(worker, block, row, column, row + 1, end, draw_given(worker, block));
      });
    }
  }
  row_ = H;
}

template <typename scalar_t>
void Run<scalar_t>::sample(const DrawJob<scalar_t>& job, int64_t units, int threads) {
  const Position next = position();
  const bool sound = plan_->height == 1;
  const bool at_start = sound ? next.column % plan_->span == 0 : next.column == 0;
  require_position(!next.done, "a pixel that is not drawn yet, got the end of the image");
  require_position(next.draw == 0 && at_start && !ready_,
                   "a position at the beginning of a row or span");
  const Drawer<scalar_t> drawer(*plan_, job);
  const int64_t W = plan_->width;
  const int64_t row_end = sound ? 1 : std::min(plan_->height, next.row + units);
  const int64_t column_end = sound ? std::min(W, next.column + units * plan_->span) : W;
  const double part =
      sound ? static_cast<double>(column_end - next.column) / static_cast<double>(W)
            : static_cast<double>(row_end - next.row) / static_cast<double>(plan_->height);
  std::vector<Fault> faults(static_cast<size_t>(std::max(threads, 1)));
  parallel(threads, total_ns_ * part, [&](auto& worker, const auto& block, int member) {
    Fault& fault = faults[static_cast<size_t>(member)];
    if (draw_ == plan_->draws.size()) worker.run_list(block, 1 + draw_, row_, column_, column_ + 1);
    scan(worker, block, next.row, sound ? next.column : 0, row_end, column_end,
         [&](size_t d, int64_t r, int64_t c) { drawer.draw(worker, block, d, r, c, fault); });
  });
  draw_ = 0;
  row_ = sound && column_end < W ? next.row : row_end;
  column_ = sound && column_end < W ? column_end : 0;
  Fault first;
  for (const Fault& fault : faults) {
    if (fault.row >= 0) first.note(fault);
  }
  first.raise();
}

template class Run<float>;
template class Run<double>;

}  // namespace genfast::sampling
