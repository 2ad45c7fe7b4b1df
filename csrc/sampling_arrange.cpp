#include "csrc/sampling_arrange.h"

#include <algorithm>
#include <atomic>

namespace genfast::sampling {
namespace {

std::atomic<bool> share_all{false};

// What a core does, roughly, measured on a Xeon with AVX-512 (Sapphire Rapids): it decides only
// how work is shared, never what is computed.
constexpr double kBytesPerNs = 300;      // multiply-adds, counted as bytes of their results
constexpr double kNearBytesPerNs = 100;  // weights that stay in the second level cache
constexpr double kFarBytesPerNs = 31;    // weights from beyond it
constexpr double kNearBytes = 1.6e6;     // what stays there
constexpr double kBarrierNs = 300;
constexpr double kInstructionNs = 60;
constexpr double kSeenBytesPerNs = 15;  // keys and values, which nothing reads twice

template <typename scalar_t>
double instruction_ns(const Instruction<scalar_t>& instruction, double rows, double bytes_per_ns,
                      double part) {
  const double width = sizeof(scalar_t);
  switch (instruction.kind) {
    case Kind::kGemm: {
      // A position has the taps of one phase.
      const double inputs =
          static_cast<double>(instruction.K) / static_cast<double>(instruction.up * instruction.up);
      const double weights = inputs * static_cast<double>(instruction.count) * width * part;
      // Sums shorter than a few vectors wait for each other.
      const double chain = inputs * 1.5;
      return kInstructionNs +
             std::max({rows * weights / kBytesPerNs, weights / bytes_per_ns, chain});
    }
    case Kind::kPointwise:
      return kInstructionNs + rows * static_cast<double>(instruction.count) * part * width * 0.05 *
                                  static_cast<double>(2 + instruction.steps.size());
    case Kind::kAttend: {
      const Attention& attention = instruction.attention;
      const double numbers = static_cast<double>(instruction.K + instruction.count) * part;
      // The past is half of all positions on average.
      const double seen = 0.5 * static_cast<double>(attention.seen());
      return kInstructionNs + rows * seen * (numbers * width / kSeenBytesPerNs + 1);
    }
    case Kind::kReduce:
    case Kind::kLookup:
      break;
  }
  return kInstructionNs + rows * static_cast<double>(instruction.count + instruction.K);
}

template <typename scalar_t>
double positions_of(const Plan<scalar_t>& plan, const Group<scalar_t>& group) {
  if (!group.when.span) return 1;
  const int64_t columns = std::min(plan.span, plan.width);
  return static_cast<double>(std::max<int64_t>(1, columns / group.when.column_scale));
}

// How often a group runs for one image.
template <typename scalar_t>
double times_of(const Plan<scalar_t>& plan, const Group<scalar_t>& group) {
  const WhenSpec& when = group.when;
  const double pixels = static_cast<double>(plan.height * plan.width) /
                        static_cast<double>(when.row_scale * when.column_scale);
  return std::min(pixels, static_cast<double>(when.height * when.width)) /
         positions_of(plan, group);
}

template <typename scalar_t>
double group_ns(const Plan<scalar_t>& plan, const Group<scalar_t>& group, double n,
                double bytes_per_ns, double part) {
  const double rows = n * positions_of(plan, group);
  double ns = 0;
  for (const auto& instruction : group.instructions) {
    ns += instruction_ns(instruction, rows, bytes_per_ns, part);
  }
  return ns;
}

// Weights that the instructions of a pixel read, in bytes.
template <typename scalar_t>
double pixel_weights(const Plan<scalar_t>& plan) {
  double bytes = 0;
  for (size_t list = 1; list < plan.lists.size(); ++list) {
    for (const auto& group : plan.lists[list]) {
      for (const auto& instruction : group.instructions) {
        if (instruction.kind != Kind::kGemm) continue;
        bytes += static_cast<double>(instruction.K * instruction.count) * sizeof(scalar_t);
      }
    }
  }
  return bytes;
}

// The share of the weights that a cache of kNearBytes keeps, if they are read in turn.
double bytes_per_ns(double weights) {
  return weights <= kNearBytes ? kNearBytesPerNs : kFarBytesPerNs;
}

int64_t panels_of(int64_t features, int64_t width) {
  return (features + width - 1) / width;
}

// Panels or heads that a group can be divided into, 0 if its features cannot be shared.
template <typename scalar_t>
int64_t feature_units(const Plan<scalar_t>& plan, const Group<scalar_t>& group) {
  const auto& first = group.instructions.front();
  if (first.kind == Kind::kAttend && group.instructions.size() == 1) return first.attention.heads;
  if (first.kind != Kind::kGemm || group.instructions.size() > 2 || first.copies_initial) return 0;
  return panels_of(group.instructions.back().count, plan.kernels.panel_width);
}

// The part of a group that the thread with most of its features computes.
template <typename scalar_t>
double largest_share(const Plan<scalar_t>& plan, const Group<scalar_t>& group, int threads) {
  const int64_t units = feature_units(plan, group);
  return static_cast<double>((units + threads - 1) / threads) / static_cast<double>(units);
}

template <typename scalar_t>
Split choose_split(const Plan<scalar_t>& plan, const Group<scalar_t>& group, int64_t n, int threads,
                   double near_far) {
  if (threads == 1) return Split::kSolo;
  const double ns = group_ns(plan, group, static_cast<double>(n), near_far, 1);
  if (ns < 2 * kBarrierNs && !sharing_everything()) return Split::kSolo;
  const auto efficiency = [threads](int64_t units) {
    const int64_t most = (units + threads - 1) / threads;
    return most == 0 ? 0.0 : static_cast<double>(units) / static_cast<double>(most * threads);
  };
  const double by_features = efficiency(feature_units(plan, group));
  const int64_t rows = n * static_cast<int64_t>(positions_of(plan, group));
  // Fewer rows to a tile waste registers, and every core reads all weights.
  const double by_rows = rows < 2 * threads && !sharing_everything()
                             ? 0
                             : efficiency(rows) * (rows < 12 * threads ? 0.4 : 0.8);
  const double least = sharing_everything() ? 0.01 : 1.3;
  if (std::max(by_features, by_rows) * threads < least) return Split::kSolo;
  return by_features >= by_rows ? Split::kFeatures : Split::kRows;
}

template <typename scalar_t>
void share_features(const Plan<scalar_t>& plan, Assignment<scalar_t>& assignment, int threads) {
  const auto& instructions = assignment.group->instructions;
  const int64_t width = plan.kernels.panel_width;
  const auto& first = instructions.front();
  const auto& last = instructions.back();
  if (first.kind == Kind::kAttend) {
    const int64_t heads = first.attention.heads;
    for (int64_t t = 0; t < threads; ++t) {
      assignment.shares.push_back({{}, heads * t / threads, heads * (t + 1) / threads});
    }
    return;
  }
  const int64_t units = panels_of(last.count, width);
  const int64_t blocks = first.count / last.count;  // that each feature of the last is made of
  for (int64_t t = 0; t < threads; ++t) {
    const int64_t begin = units * t / threads, end = units * (t + 1) / threads;
    Share gemm{{}, 0, 0};
    for (int64_t block = 0; block < blocks; ++block) {
      for (int64_t p = begin; p < end; ++p) {
        gemm.panels.push_back(static_cast<int32_t>(block * units + p));
      }
    }
    assignment.shares.push_back(gemm);
    if (instructions.size() == 2) {
      assignment.shares.push_back({{}, begin * width, std::min(end * width, last.count)});
    }
  }
}

template <typename scalar_t>
void share_whole(const Plan<scalar_t>& plan, Assignment<scalar_t>& assignment) {
  for (const auto& instruction : assignment.group->instructions) {
    Share share{{}, 0, instruction.count};
    if (instruction.kind == Kind::kGemm) {
      const int64_t panels = panels_of(instruction.count, plan.kernels.panel_width);
      for (int64_t p = 0; p < panels; ++p) share.panels.push_back(static_cast<int32_t>(p));
    }
    if (instruction.kind == Kind::kAttend) share.end = instruction.attention.heads;
    assignment.shares.push_back(share);
  }
}

template <typename scalar_t>
bool reads(const Instruction<scalar_t>& instruction, int32_t grid) {
  const auto is = [grid](const Read& read) { return read.grid == grid; };
  const auto any = [&](const std::vector<Read>& those) {
    return std::any_of(those.begin(), those.end(), is);
  };
  if (instruction.kind == Kind::kAttend) {
    const Attention& attention = instruction.attention;
    if (is(attention.bias) || any(attention.keys.reads) || any(attention.values.reads)) return true;
  }
  return any(instruction.reads) || std::any_of(instruction.taps.begin(), instruction.taps.end(),
                                               [&](const Tap& tap) { return is(tap.read); });
}

// Whether two instructions write the same features of a buffer that the first one writes.
template <typename scalar_t>
bool writes_same(const Instruction<scalar_t>& a, const Instruction<scalar_t>& b, int32_t grid) {
  if (!b.writes(grid)) return false;
  const int64_t first = a.first_in(grid), other = b.first_in(grid);
  return first < other + b.count && other < first + a.count;
}

template <typename scalar_t>
bool conflict(const Group<scalar_t>& before, const Group<scalar_t>& after) {
  for (const auto& a : before.instructions) {
    for (const auto& b : after.instructions) {
      for (const int32_t grid : {a.out, a.rectified}) {
        if (grid >= 0 && (reads(b, grid) || writes_same(a, b, grid))) return true;
      }
      for (const int32_t grid : {b.out, b.rectified}) {
        if (grid >= 0 && reads(a, grid)) return true;
      }
    }
  }
  return false;
}

}  // namespace

bool share_everything(bool on) {
  return share_all.exchange(on);
}

bool sharing_everything() {
  return share_all.load();
}

template <typename scalar_t>
Arrangement<scalar_t> arrange(const Plan<scalar_t>& plan, int64_t n, int threads) {
  Arrangement<scalar_t> made{threads, {}, {}};
  const double speed = bytes_per_ns(pixel_weights(plan));
  for (const auto& list : threads == 1 ? plan.lists : plan.team_lists) {
    auto& assignments = made.lists.emplace_back();
    for (const auto& group : list) {
      Assignment<scalar_t> assignment{&group, choose_split(plan, group, n, threads, speed), -1, {}};
      if (assignment.split == Split::kFeatures) {
        share_features(plan, assignment, threads);
      } else {
        share_whole(plan, assignment);
      }
      for (size_t before = 0; before < assignments.size(); ++before) {
        const bool both_solo =
            assignments[before].split == Split::kSolo && assignment.split == Split::kSolo;
        if (!both_solo && conflict(*assignments[before].group, group)) {
          assignment.last_conflict = static_cast<int64_t>(before);
        }
      }
      assignments.push_back(assignment);
    }
    auto& rows = made.rows.emplace_back(static_cast<size_t>(plan.height));
    for (size_t g = 0; g < assignments.size(); ++g) {
      const WhenSpec& when = assignments[g].group->when;
      for (int64_t row = std::max<int64_t>(0, when.row_offset); row < plan.height; ++row) {
        const int64_t i = row - when.row_offset;
        if (i % when.row_scale == 0 && i / when.row_scale < when.height) {
          rows[static_cast<size_t>(row)].push_back(static_cast<int32_t>(g));
        }
      }
    }
  }
  return made;
}

template <typename scalar_t>
double estimate(const Plan<scalar_t>& plan, int64_t n) {
  const double speed = bytes_per_ns(pixel_weights(plan));
  double ns = 0;
  for (size_t list = 0; list < plan.lists.size(); ++list) {
    for (const auto& group : plan.lists[list]) {
      ns += times_of(plan, group) * group_ns(plan, group, static_cast<double>(n), speed, 1);
    }
  }
  return ns;
}

template <typename scalar_t>
double team_estimate(const Plan<scalar_t>& plan, int64_t n, int threads) {
  const Arrangement<scalar_t> team = arrange(plan, n, threads);
  const double speed = bytes_per_ns(pixel_weights(plan) / threads);
  double ns = 0;
  for (const auto& list : team.lists) {
    for (const auto& assignment : list) {
      const Group<scalar_t>& group = *assignment.group;
      double part = 1, images = static_cast<double>(n);
      if (assignment.split == Split::kFeatures) part = largest_share(plan, group, threads);
      if (assignment.split == Split::kRows) images /= threads;
      const double barrier = assignment.split == Split::kSolo ? 0 : kBarrierNs;
      ns += times_of(plan, group) * (group_ns(plan, group, images, speed, part) + barrier);
    }
  }
  return ns;
}

template <typename scalar_t>
int team_size(const Plan<scalar_t>& plan, int64_t n, int threads) {
  if (threads == 1 || sharing_everything()) return threads;
  const int64_t members = std::min<int64_t>(threads, n);
  double least = estimate(plan, (n + members - 1) / members);
  int best = 1;
  for (int size = 2; size <= threads; size *= 2) {
    for (const int each : {size, std::min(size + size / 2, threads)}) {
      const double ns = team_estimate(plan, n, each);
      if (ns < least) {
        least = ns;
        best = each;
      }
    }
  }
  return best;
}

#define GENFAST_INSTANTIATE(scalar_t)                                          \
  template Arrangement<scalar_t> arrange(const Plan<scalar_t>&, int64_t, int); \
  template double estimate(const Plan<scalar_t>&, int64_t);                    \
  template int team_size(const Plan<scalar_t>&, int64_t, int);
GENFAST_INSTANTIATE(float)
GENFAST_INSTANTIATE(double)
#undef GENFAST_INSTANTIATE

}  // namespace genfast::sampling
