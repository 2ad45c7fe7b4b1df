// Attention at the rows of a chunk: which positions a head sees, and where their numbers lie.
#include <algorithm>
#include <limits>

#include "csrc/sampling_worker.h"

namespace genfast::sampling {
namespace {

constexpr int64_t kLanes = cpu::kAttendLanes;

int64_t whole_lanes(int64_t count) {
  return (count + kLanes - 1) / kLanes * kLanes;
}

template <typename scalar_t>
bool seen(scalar_t bias) {
  return bias != -std::numeric_limits<scalar_t>::infinity();
}

template <typename scalar_t>
void find_runs(const scalar_t* bias, int64_t step, int64_t positions,
               std::vector<cpu::AttendRun>& runs) {
  runs.clear();
  for (int64_t q = 0; q < positions;) {
    while (q < positions && !seen(bias[q * step])) ++q;
    const int64_t begin = q;
    while (q < positions && seen(bias[q * step])) ++q;
    if (begin < q) runs.push_back({begin, q});
  }
}

template <typename scalar_t>
bool see_the_same(const scalar_t* bias, const scalar_t* other, int64_t step, int64_t positions) {
  for (int64_t q = 0; q < positions; ++q) {
    if (seen(bias[q * step]) != seen(other[q * step])) return false;
  }
  return true;
}

// Where a read from (i, j), (i, j + 1), ... finds its features for image b; returns for how many
// positions that holds, at most `limit`.
template <typename scalar_t>
int64_t locate(const Block<scalar_t>& block, const Read& read, int64_t b, int64_t i, int64_t j,
               int64_t limit, const scalar_t* fill, cpu::AttendPlace<scalar_t>* place) {
  const auto& store = block.stores[static_cast<size_t>(read.grid)];
  const int64_t column = j + read.dx, right = std::min(read.right, store.width);
  if (const scalar_t* from = block.at(read, i, j)) {
    const bool moves = store.columns > 1;
    *place = {from + b * store.image_stride, moves ? store.column_stride : 0, read.step};
    const int64_t here = moves ? store.columns - column % store.columns : limit;
    return std::min({limit, right - column, here});
  }
  *place = {fill, 0, 0};
  const bool enters = column < read.left && block.at(read, i, read.left - read.dx) != nullptr;
  return enters ? std::min(limit, read.left - column) : limit;
}

// Calls visit(places, count) for the positions of a run, as many together as lie evenly.
template <typename scalar_t, typename Visit>
void each_stretch(const Block<scalar_t>& block, const Sight& sight, int64_t b, int64_t width,
                  const cpu::AttendRun& run, Attending<scalar_t>& scratch, Visit visit) {
  const size_t reads = sight.reads.size();
  for (size_t r = 0; r < reads; ++r) {
    scratch.fills[r] = static_cast<scalar_t>(sight.reads[r].fill);
  }
  // From position q on, within its row.
  const auto find = [&](int64_t q, std::vector<cpu::AttendPlace<scalar_t>>& places) {
    const int64_t i = q / width, j = q % width;
    int64_t count = std::min(run.end - q, width - j);
    for (size_t r = 0; r < reads; ++r) {
      count = locate(block, sight.reads[r], b, i, j, count, &scratch.fills[r], &places[r]);
    }
    return count;
  };
  for (int64_t q = run.begin; q < run.end;) {
    int64_t count = find(q, scratch.places);
    while (q + count < run.end && (q + count) % width == 0) {
      const int64_t more = find(q + count, scratch.next);
      bool even = true;
      for (size_t r = 0; r < reads; ++r) {
        const auto &place = scratch.places[r], &next = scratch.next[r];
        even = even && place.step == next.step && place.stride == next.stride &&
               place.first + count * place.stride == next.first;
      }
      if (!even) break;
      count += more;
    }
    visit(scratch.places.data(), count);
    q += count;
  }
}

}  // namespace

template <typename scalar_t>
Attending<scalar_t>::Attending(const Plan<scalar_t>& plan)
    // Scores are stored by whole vectors, from anywhere.
    : seen(whole_lanes(plan.most_seen) + kLanes),
      depth(whole_lanes(plan.most_depth)),
      numbers(plan.most_seen == 0
                  ? 0
                  : static_cast<size_t>(cpu::kAttendHeads * (seen + 2 * depth) + depth) *
                        sizeof(scalar_t)),
      scores(static_cast<scalar_t*>(numbers.data())),
      queries(scores + cpu::kAttendHeads * seen),
      totals(queries + cpu::kAttendHeads * depth),
      key(totals + cpu::kAttendHeads * depth),
      places(static_cast<size_t>(plan.most_sights)),
      next(static_cast<size_t>(plan.most_sights)),
      fills(static_cast<size_t>(plan.most_sights)) {
  runs.reserve(static_cast<size_t>(plan.most_seen + 1) / 2);
}

template <typename scalar_t>
void Worker<scalar_t>::attend(const Block<scalar_t>& block,
                              const Instruction<scalar_t>& instruction, const Share& share,
                              const Chunk& chunk) {
  const Attention& attention = instruction.attention;
  const int64_t positions = attention.seen();
  point_out(block, instruction.out, instruction.first, chunk, out_.data());
  const size_t reads = instruction.reads.size();
  for (size_t r = 0; r < reads; ++r) {
    point(block, instruction.reads[r], chunk, 1, 1, pointers(r));
  }
  point(block, attention.bias, chunk, 1, 1, pointers(reads));
  scalar_t* const queries = static_cast<scalar_t*>(joined_.data());
  const scalar_t fill = static_cast<scalar_t>(attention.bias.fill);
  const scalar_t* known = nullptr;  // the bias that `runs` belongs to
  for (int64_t q = 0; q < chunk.end - chunk.begin; ++q) {
    join(instruction, q, queries);
    const scalar_t* bias = pointers(reads)[q];
    const int64_t step = bias == nullptr ? 0 : attention.bias.step;
    if (bias == nullptr) bias = &fill;
    const bool own = attention.bias_heads > 1;
    for (int64_t head = share.begin; head < share.end;) {
      const scalar_t* its = own ? bias + head * positions * step : bias;
      if (its != known) find_runs(its, step, positions, attending_.runs);
      known = its;
      int64_t heads = 1;
      while (heads < cpu::kAttendHeads && head + heads < share.end &&
             (!own || see_the_same(its, its + heads * positions * step, step, positions))) {
        ++heads;
      }
      attend_heads(block, attention, (chunk.begin + q) % block.n, head, heads, queries, its, step,
                   out_[static_cast<size_t>(q)]);
      head += heads;
    }
  }
}

template <typename scalar_t>
void Worker<scalar_t>::attend_heads(const Block<scalar_t>& block, const Attention& attention,
                                    int64_t b, int64_t head, int64_t heads, const scalar_t* queries,
                                    const scalar_t* bias, int64_t bias_step, scalar_t* out) {
  Attending<scalar_t>& scratch = attending_;
  const Sight &keys = attention.keys, &values = attention.values;
  out += head * values.size;
  if (scratch.runs.empty()) {
    std::fill_n(out, heads * values.size, scalar_t(0));
    return;
  }
  for (int64_t h = 0; h < heads; ++h) {
    scalar_t* to = scratch.queries + h * scratch.depth;
    std::copy_n(queries + (head + h) * keys.size, keys.size, to);
    std::fill(to + keys.size, to + whole_lanes(keys.size), scalar_t(0));
  }
  int64_t k = 0;
  for (const cpu::AttendRun& run : scratch.runs) {
    each_stretch(block, keys, b, attention.width, run, scratch, [&](const auto* places, int64_t n) {
      plan_.kernels.attend_scores(
          {{places, keys.pieces.data(), keys.begins.data() + head, heads, n},
           keys.size,
           scratch.queries,
           scratch.depth,
           scratch.scores + k,
           scratch.seen,
           scratch.key});
      k += n;
    });
  }
  scalar_t sums[cpu::kAttendHeads];
  for (int64_t h = 0; h < heads; ++h) {
    const scalar_t* its = attention.bias_heads > 1 ? bias + h * attention.seen() * bias_step : bias;
    sums[h] =
        plan_.kernels.attend_weights({scratch.scores + h * scratch.seen, k, scratch.runs.data(),
                                      static_cast<int64_t>(scratch.runs.size()), its, bias_step,
                                      static_cast<scalar_t>(attention.scale)});
    std::fill_n(scratch.totals + h * scratch.depth, values.size, scalar_t(0));
  }
  k = 0;
  for (const cpu::AttendRun& run : scratch.runs) {
    each_stretch(block, values, b, attention.width, run, scratch,
                 [&](const auto* places, int64_t n) {
                   plan_.kernels.attend_values(
                       {{places, values.pieces.data(), values.begins.data() + head, heads, n},
                        scratch.scores + k,
                        scratch.seen,
                        scratch.totals,
                        scratch.depth});
                   k += n;
                 });
  }
  for (int64_t h = 0; h < heads; ++h, out += values.size) {
    const scalar_t* from = scratch.totals + h * scratch.depth;
    for (int64_t w = 0; w < values.size; ++w) out[w] = from[w] / sums[h];
  }
}

template struct Attending<float>;
template struct Attending<double>;
template void Worker<float>::attend(const Block<float>&, const Instruction<float>&, const Share&,
                                    const Chunk&);
template void Worker<double>::attend(const Block<double>&, const Instruction<double>&, const Share&,
                                     const Chunk&);

}  // namespace genfast::sampling
