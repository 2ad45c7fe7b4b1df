#include "csrc/sampling_worker.h"

#include <algorithm>
#include <cmath>

namespace genfast::sampling {
namespace {

// Most divisors of the walk are one, and a division takes longer than to see that.
int64_t quotient(int64_t a, int64_t b) {
  return b == 1 ? a : a / b;
}

int64_t rest(int64_t a, int64_t b) {
  return b == 1 ? 0 : a % b;
}

int64_t floor_div(int64_t a, int64_t b) {
  return a >= 0 ? a / b : -((-a + b - 1) / b);
}

int64_t ceil_div(int64_t a, int64_t b) {
  return -floor_div(-a, b);
}

}  // namespace

template <typename scalar_t>
Block<scalar_t>::Block(const Plan<scalar_t>& plan, int64_t first, int64_t n,
                       const std::vector<Condition<scalar_t>>& conditions)
    : first(first), n(n) {
  const int64_t line = 64 / static_cast<int64_t>(sizeof(scalar_t));
  int64_t numbers = 0;
  std::vector<int64_t> begins;
  for (const Grid<scalar_t>& grid : plan.grids) {
    Store store{const_cast<scalar_t*>(grid.constant),
                0,
                0,
                0,
                grid.rows,
                grid.columns,
                grid.height,
                grid.width};
    int64_t images = grid.wraps ? n : 1;
    if (grid.condition >= 0) {
      const Condition<scalar_t>& given = conditions[static_cast<size_t>(grid.condition)];
      images = given.images == 1 ? 1 : n;
      store.rows = given.rows;
      store.columns = given.columns;
      store.height = given.rows == 1 ? kEverywhere : given.rows;
      store.width = given.columns == 1 ? kEverywhere : given.columns;
    }
    store.image_stride = images == 1 && !grid.wraps ? 0 : grid.stride;
    store.column_stride = images * grid.stride;
    if (grid.by_image) {
      store.image_stride = store.rows * store.columns * grid.stride;
      store.column_stride = grid.stride;
    }
    store.row_stride = store.columns * store.column_stride;
    stores.push_back(store);
    begins.push_back(numbers);
    if (grid.constant == nullptr) {
      numbers += (images * store.rows * store.columns * grid.stride + line - 1) / line * line;
    }
  }
  memory = Memory(static_cast<size_t>(numbers) * sizeof(scalar_t));
  for (size_t g = 0; g < stores.size(); ++g) {
    const Grid<scalar_t>& grid = plan.grids[g];
    if (grid.constant != nullptr) continue;
    stores[g].base = static_cast<scalar_t*>(memory.data()) + begins[g];
    if (grid.condition >= 0) {
      fill(stores[g], grid, conditions[static_cast<size_t>(grid.condition)]);
    }
  }
}

// [images, rows, columns, features] -> [rows, columns, images of the block, stride]
template <typename scalar_t>
void Block<scalar_t>::fill(const Store& store, const Grid<scalar_t>& grid,
                           const Condition<scalar_t>& given) const {
  const int64_t positions = given.rows * given.columns;
  const int64_t images = given.images == 1 ? 1 : n;
  const scalar_t* from = given.data + (given.images == 1 ? 0 : first * positions * grid.features);
  for (int64_t b = 0; b < images; ++b) {
    for (int64_t p = 0; p < positions; ++p, from += grid.features) {
      std::copy_n(from, grid.features, store.base + (p * images + b) * grid.stride);
    }
  }
}

template <typename scalar_t>
Worker<scalar_t>::Worker(const Plan<scalar_t>& plan, const Arrangement<scalar_t>& arrangement,
                         int member, Barrier* barrier)
    : plan_(plan),
      arrangement_(arrangement),
      member_(member),
      barrier_(barrier),
      pointers_(static_cast<size_t>((plan.most_reads + 1) * cpu::kSamplingRows)),
      out_(static_cast<size_t>(cpu::kSamplingRows)),
      rectified_(static_cast<size_t>(cpu::kSamplingRows)),
      taps_(static_cast<size_t>(plan.most_reads)),
      reads_(static_cast<size_t>(plan.most_reads)),
      live_(static_cast<size_t>(plan.most_live)),
      zeros_(2 * static_cast<size_t>(plan.most_features) * sizeof(scalar_t)),
      registers_(static_cast<size_t>(plan.most_registers * cpu::kPointwiseChunk) *
                 sizeof(scalar_t)),
      joined_(static_cast<size_t>(std::max(plan.most_features, plan.most_levels)) *
              sizeof(scalar_t)),
      doubles_(static_cast<size_t>(plan.most_levels) * sizeof(double)),
      attending_(plan) {}

template <typename scalar_t>
void Worker<scalar_t>::settle(bool all) {
  if (pending_all_ || (all && pending_solo_)) {
    barrier_->wait(member_);
    pending_all_ = pending_solo_ = false;
  }
}

template <typename scalar_t>
void Worker<scalar_t>::wrote(bool all) {
  (all ? pending_all_ : pending_solo_) = true;
}

template <typename scalar_t>
void Worker<scalar_t>::run_list(const Block<scalar_t>& block, size_t list, int64_t r, int64_t c0,
                                int64_t c1) {
  const auto& assignments = arrangement_.lists[list];
  const int64_t count = static_cast<int64_t>(assignments.size());
  int64_t settled = 0;  // groups before this one are finished on all threads
  const bool spans = list == 0;
  for (const int64_t g : arrangement_.rows[list][static_cast<size_t>(r)]) {
    const Assignment<scalar_t>& assignment = assignments[static_cast<size_t>(g)];
    const WhenSpec& when = assignment.group->when;
    const int64_t i = quotient(r - when.row_offset, when.row_scale);
    int64_t first = (spans && c0 == 0 ? -when.before : c0) - when.column_offset;
    int64_t last = c1 - 1 - when.column_offset;
    if (when.column_scale != 1) {
      first = ceil_div(first, when.column_scale);
      last = floor_div(last, when.column_scale);
    }
    first = std::max<int64_t>(first, 0);
    last = std::min(last, when.width - 1);
    if (first > last) continue;
    const bool shared = assignment.split != Split::kSolo;
    if (arrangement_.threads > 1) {
      if (assignment.last_conflict >= settled || pending_all_ || (shared && pending_solo_)) {
        barrier_->wait(member_);
        pending_all_ = pending_solo_ = false;
        settled = g;
      }
      if (!shared && member_ != 0) continue;
    }
    run_group(block, assignment, i, first, last);
  }
  if (arrangement_.threads == 1) return;
  for (int64_t g = settled; g < count; ++g) {
    wrote(assignments[static_cast<size_t>(g)].split != Split::kSolo);
  }
}

template <typename scalar_t>
void Worker<scalar_t>::run_group(const Block<scalar_t>& block,
                                 const Assignment<scalar_t>& assignment, int64_t i, int64_t j_first,
                                 int64_t j_last) {
  const int64_t up = assignment.group->up;
  // Positions of one phase have the same taps.
  for (int64_t j0 = j_first; j0 < j_first + up && j0 <= j_last; ++j0) {
    const int64_t rows = (quotient(j_last - j0, up) + 1) * block.n;
    int64_t begin = 0, end = rows;
    if (assignment.split == Split::kRows) {
      begin = rows * member_ / arrangement_.threads;
      end = rows * (member_ + 1) / arrangement_.threads;
    }
    while (begin < end) {
      const Chunk chunk{i, j0, up, begin, std::min(end, begin + cpu::kSamplingRows)};
      run_rows(block, assignment, chunk);
      begin = chunk.end;
    }
  }
}

template <typename scalar_t>
void Worker<scalar_t>::run_rows(const Block<scalar_t>& block,
                                const Assignment<scalar_t>& assignment, const Chunk& chunk) {
  const auto& instructions = assignment.group->instructions;
  const size_t offset =
      assignment.split == Split::kFeatures ? static_cast<size_t>(member_) * instructions.size() : 0;
  for (size_t n = 0; n < instructions.size(); ++n) {
    const Instruction<scalar_t>& instruction = instructions[n];
    const Share& share = assignment.shares[offset + n];
    switch (instruction.kind) {
      case Kind::kGemm:
        gemm(block, instruction, share, chunk);
        break;
      case Kind::kPointwise:
        pointwise(block, instruction, share, chunk);
        break;
      case Kind::kReduce:
        reduce(block, instruction, chunk);
        break;
      case Kind::kLookup:
        lookup(block, instruction, chunk);
        break;
      case Kind::kAttend:
        attend(block, instruction, share, chunk);
        break;
    }
  }
}

template <typename scalar_t>
bool Worker<scalar_t>::point(const Block<scalar_t>& block, const Read& read, const Chunk& chunk,
                             int64_t up, int64_t down, const scalar_t** to) {
  const int64_t stride = block.image_stride(read.grid);
  const int64_t i = quotient(chunk.i, up) * down;
  int64_t position = quotient(chunk.begin, block.n), b = rest(chunk.begin, block.n);
  bool inside = false;
  for (int64_t q = chunk.begin; q < chunk.end; ++position, b = 0) {
    const int64_t j = chunk.j0 + position * chunk.j_step;
    const scalar_t* from = block.at(read, i, quotient(j, up) * down);
    const int64_t until = std::min(chunk.end, q + block.n - b);
    if (from == nullptr) {
      for (; q < until; ++q) *to++ = nullptr;
    } else {
      inside = true;
      from += b * stride;
      for (; q < until; ++q, from += stride) *to++ = from;
    }
  }
  return inside;
}

template <typename scalar_t>
void Worker<scalar_t>::point_out(const Block<scalar_t>& block, int32_t grid, int64_t first,
                                 const Chunk& chunk, scalar_t** to) {
  const int64_t stride = block.image_stride(grid);
  int64_t position = quotient(chunk.begin, block.n), b = rest(chunk.begin, block.n);
  for (int64_t q = chunk.begin; q < chunk.end; ++position, b = 0) {
    const int64_t j = chunk.j0 + position * chunk.j_step;
    scalar_t* at = block.out(grid, first, chunk.i, j) + b * stride;
    const int64_t until = std::min(chunk.end, q + block.n - b);
    for (; q < until; ++q, at += stride) *to++ = at;
  }
}

template <typename scalar_t>
void Worker<scalar_t>::join(const Instruction<scalar_t>& instruction, int64_t q,
                            scalar_t* to) const {
  for (size_t r = 0; r < instruction.reads.size(); ++r) {
    const Read& read = instruction.reads[r];
    const scalar_t* from = pointers_[r * cpu::kSamplingRows + static_cast<size_t>(q)];
    if (from == nullptr) {
      for (int64_t f = 0; f < read.count; ++f) *to++ = static_cast<scalar_t>(read.fill);
    } else {
      for (int64_t f = 0; f < read.count; ++f) *to++ = from[f * read.step];
    }
  }
}

template <typename scalar_t>
void Worker<scalar_t>::gemm(const Block<scalar_t>& block, const Instruction<scalar_t>& instruction,
                            const Share& share, const Chunk& chunk) {
  const int64_t rows = chunk.end - chunk.begin;
  point_out(block, instruction.out, instruction.first, chunk, out_.data());
  scalar_t* const* rectified = nullptr;
  if (instruction.rectified >= 0) {
    rectified = rectified_.data();
    point_out(block, instruction.rectified, instruction.rectified_first, chunk, rectified_.data());
  }
  const scalar_t* const* initial = nullptr;
  if (instruction.has_initial) {
    bool copies = instruction.copies_initial;
    for (size_t r = 0; r < instruction.reads.size(); ++r) {
      const scalar_t** to = pointers(r);
      point(block, instruction.reads[r], chunk, 1, 1, to);
      for (int64_t q = 0; q < rows; ++q) copies = copies || to[q] == nullptr;
    }
    initial = pointers(0);
    if (copies) {
      // Into the result, where the sums begin from; a thread's panels are all that it may touch.
      const int64_t width = plan_.kernels.panel_width;
      scalar_t* joined = static_cast<scalar_t*>(joined_.data());
      for (int64_t q = 0; q < rows; ++q) {
        join(instruction, q, joined);
        for (const int32_t panel : share.panels) {
          const int64_t from = panel * width;
          std::copy(joined + from, joined + std::min(from + width, instruction.count),
                    out_[static_cast<size_t>(q)] + from);
        }
      }
      initial = out_.data();
    }
  }
  const int64_t phase_row = rest(chunk.i, instruction.up);
  const int64_t phase_column = rest(chunk.j0, instruction.up);
  int64_t taps = 0;
  // The initial value's pointers are still needed.
  size_t place = initial == pointers(0) ? 1 : 0;
  for (const Tap& tap : instruction.taps) {
    if (tap.phase_row != phase_row || tap.phase_column != phase_column) continue;
    const scalar_t** to = pointers(place);
    if (!point(block, tap.read, chunk, instruction.up, instruction.down, to)) continue;
    ++place;
    taps_[static_cast<size_t>(taps++)] = {to, tap.first_k, tap.read.count, tap.read.step};
  }
  plan_.kernels.gemm({taps_.data(), taps, rows, out_.data(), rectified, initial, instruction.bias,
                      instruction.packed, instruction.K, instruction.count, share.panels.data(),
                      static_cast<int64_t>(share.panels.size()),
                      static_cast<const scalar_t*>(zeros_.data()) + plan_.most_features,
                      !instruction.finite,
                      instruction.sparse && rows == 1 ? live_.data() : nullptr});
}

template <typename scalar_t>
void Worker<scalar_t>::pointwise(const Block<scalar_t>& block,
                                 const Instruction<scalar_t>& instruction, const Share& share,
                                 const Chunk& chunk) {
  point_out(block, instruction.out, instruction.first, chunk, out_.data());
  for (size_t r = 0; r < instruction.reads.size(); ++r) {
    const Read& read = instruction.reads[r];
    point(block, read, chunk, 1, 1, pointers(r));
    reads_[r] = {pointers(r), read.step, static_cast<scalar_t>(read.fill),
                 instruction.read_registers[r]};
  }
  plan_.kernels.pointwise(
      {reads_.data(), static_cast<int64_t>(instruction.reads.size()), instruction.constants.data(),
       static_cast<int64_t>(instruction.constants.size()), instruction.steps.data(),
       static_cast<int64_t>(instruction.steps.size()), instruction.result, chunk.end - chunk.begin,
       share.begin, share.end, out_.data(), static_cast<scalar_t*>(registers_.data())});
}

template <typename scalar_t>
void Worker<scalar_t>::reduce(const Block<scalar_t>& block,
                              const Instruction<scalar_t>& instruction, const Chunk& chunk) {
  point_out(block, instruction.out, instruction.first, chunk, out_.data());
  for (size_t r = 0; r < instruction.reads.size(); ++r) {
    point(block, instruction.reads[r], chunk, 1, 1, pointers(r));
  }
  scalar_t* const joined = static_cast<scalar_t*>(joined_.data());
  for (int64_t q = 0; q < chunk.end - chunk.begin; ++q) {
    join(instruction, q, joined);
    scalar_t* to = out_[static_cast<size_t>(q)];
    for (int64_t o = 0; o < instruction.outer; ++o) {
      for (int64_t i = 0; i < instruction.inner; ++i) {
        const scalar_t* from = joined + o * instruction.size * instruction.inner + i;
        if (instruction.maximum) {
          scalar_t most = from[0];
          for (int64_t s = 1; s < instruction.size; ++s) {
            const scalar_t x = from[s * instruction.inner];
            most = x > most || std::isnan(x) ? x : most;
          }
          *to++ = most;
        } else {
          double sum = 0;
          for (int64_t s = 0; s < instruction.size; ++s) sum += from[s * instruction.inner];
          *to++ = static_cast<scalar_t>(sum);
        }
      }
    }
  }
}

template <typename scalar_t>
void Worker<scalar_t>::lookup(const Block<scalar_t>& block,
                              const Instruction<scalar_t>& instruction, const Chunk& chunk) {
  point_out(block, instruction.out, instruction.first, chunk, out_.data());
  point(block, instruction.reads[0], chunk, 1, 1, pointers(0));
  for (int64_t q = 0; q < chunk.end - chunk.begin; ++q) {
    const scalar_t* from = pointers(0)[q];
    const scalar_t value =
        from == nullptr ? static_cast<scalar_t>(instruction.reads[0].fill) : *from;
    const bool exists = value >= 0 && value < static_cast<scalar_t>(instruction.levels);
    if (!exists) bad_index_ = true;
    const int64_t row = exists ? static_cast<int64_t>(value) : 0;
    std::copy_n(instruction.packed + row * instruction.count, instruction.count,
                out_[static_cast<size_t>(q)]);
  }
}

template <typename scalar_t>
const scalar_t* Worker<scalar_t>::parameters(const Block<scalar_t>& block,
                                             const Draw<scalar_t>& draw, int64_t r, int64_t c,
                                             int64_t b) {
  scalar_t* const joined = static_cast<scalar_t*>(joined_.data());
  scalar_t* to = joined;
  for (const Read& read : draw.reads) {
    const scalar_t* from = block.at(read, r, c);
    if (from == nullptr) {
      to = std::fill_n(to, read.count, static_cast<scalar_t>(read.fill));
      continue;
    }
    from += b * block.image_stride(read.grid);
    if (draw.reads.size() == 1 && read.step == 1) return from;
    for (int64_t f = 0; f < read.count; ++f) *to++ = from[f * read.step];
  }
  return joined;
}

template struct Block<float>;
template struct Block<double>;
template class Worker<float>;
template class Worker<double>;

}  // namespace genfast::sampling
