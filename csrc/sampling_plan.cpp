#include "csrc/sampling_plan.h"

#include <sys/mman.h>

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <new>
#include <stdexcept>
#include <string>

namespace genfast::sampling {
namespace {

constexpr size_t kLine = 64;
constexpr size_t kHugePage = size_t{2} << 20;
constexpr int64_t kLargest = int64_t{1}
                             << 40;  // sizes beyond this are mistakes, and would overflow
constexpr int64_t kLongest = int64_t{1}
                             << 31;  // rows or columns: positions are taken modulo slots in 32 bits

void require(bool condition, const char* rule, const char* name, int64_t value) {
  if (condition) return;
  throw std::invalid_argument(std::string("sampling program: expected ") + rule + ", got " + name +
                              "=" + std::to_string(value));
}

int64_t round_up(int64_t value, int64_t to) {
  return (value + to - 1) / to * to;
}

// Numbers kept per position and image: whole cache lines, unless that would waste most of them.
template <typename scalar_t>
int64_t stride_of(int64_t features) {
  const int64_t line = kLine / sizeof(scalar_t);
  if (features > line / 2) return round_up(features, line);
  int64_t stride = 1;
  while (stride < features) stride *= 2;
  return stride;
}

template <typename scalar_t>
Kernels<scalar_t> kernels_of_this_machine() {
  return cpu::at_simd_level([](auto level) {
    return Kernels<scalar_t>{cpu::kPanelWidth<level(), scalar_t>,
                             cpu::sampling_gemm<level(), scalar_t>,
                             cpu::sampling_pointwise<level(), scalar_t>,
                             cpu::sampling_attend_scores<level(), scalar_t>,
                             cpu::sampling_attend_weights<level(), scalar_t>,
                             cpu::sampling_attend_values<level(), scalar_t>};
  });
}

// Hands out pieces of one Memory; the first pass only counts.
template <typename scalar_t>
class Packer {
 public:
  void start(void* base) {
    base_ = static_cast<scalar_t*>(base);
    used_ = 0;
  }
  scalar_t* take(int64_t numbers) {
    scalar_t* piece = base_ == nullptr ? nullptr : base_ + used_;
    used_ += round_up(numbers, kLine / sizeof(scalar_t));
    return piece;
  }
  size_t bytes() const { return static_cast<size_t>(used_) * sizeof(scalar_t); }

 private:
  scalar_t* base_ = nullptr;
  int64_t used_ = 0;
};

template <typename scalar_t>
class Compiler {
 public:
  Compiler(const ProgramSpec<scalar_t>& spec, const Plan<scalar_t>& plan)
      : spec_(spec), plan_(plan) {}

  Read read(const ReadSpec& spec) const {
    const int64_t sources =
        static_cast<int64_t>(spec.table ? spec_.tables.size() : spec_.buffers.size());
    require(spec.source >= 0 && spec.source < sources, "a source that exists", "source",
            spec.source);
    const int64_t number = spec.table ? plan_.buffer_count + spec.source : spec.source;
    const Grid<scalar_t>& grid = plan_.grids[static_cast<size_t>(number)];
    require(spec.count >= 1 && spec.count < kLongest, "count >= 1", "count", spec.count);
    require(std::abs(spec.step) < kLongest, "a small step", "step", spec.step);
    require(spec.start >= 0 && spec.start < grid.features, "features of the source", "start",
            spec.start);
    const int64_t last = spec.start + (spec.count - 1) * spec.step;
    require(last >= 0 && last < grid.features, "features of the source", "last", last);
    require(std::abs(spec.dy) < kLargest, "a small offset", "dy", spec.dy);
    require(std::abs(spec.dx) < kLargest, "a small offset", "dx", spec.dx);
    Read read{static_cast<int32_t>(number),
              spec.start,
              spec.step,
              spec.count,
              spec.dy,
              spec.dx,
              spec.top,
              spec.bottom,
              spec.left,
              spec.right,
              spec.fill};
    // No position is negative, except where the one position of a constant stands for all.
    if (grid.wraps || grid.rows > 1 || grid.condition >= 0)
      read.top = std::max<int64_t>(read.top, 0);
    if (grid.wraps || grid.columns > 1 || grid.condition >= 0) {
      read.left = std::max<int64_t>(read.left, 0);
    }
    return read;
  }

  std::vector<Read> joined(const std::vector<ReadSpec>& specs, int64_t* total,
                           std::vector<int64_t>* begins = nullptr) const {
    std::vector<Read> reads;
    *total = 0;
    for (const ReadSpec& spec : specs) {
      reads.push_back(read(spec));
      if (begins != nullptr) begins->push_back(*total);
      *total += spec.count;
    }
    return reads;
  }

  Instruction<scalar_t> instruction(const InstructionSpec<scalar_t>& spec,
                                    Packer<scalar_t>& packer) const {
    const int64_t buffers = static_cast<int64_t>(spec_.buffers.size());
    require(spec.out >= 0 && spec.out < buffers, "a buffer that exists", "out", spec.out);
    require(spec.count >= 1 && spec.count < kLongest, "count >= 1", "count", spec.count);
    const int64_t features = spec_.buffers[static_cast<size_t>(spec.out)].features;
    require(spec.first >= 0 && spec.first + spec.count <= features, "features of the buffer",
            "first", spec.first);
    Instruction<scalar_t> made;
    made.kind = spec.kind;
    made.out = static_cast<int32_t>(spec.out);
    made.first = spec.first;
    made.count = spec.count;
    switch (spec.kind) {
      case Kind::kGemm:
        gemm(spec, packer, made);
        break;
      case Kind::kPointwise:
        pointwise(spec, made);
        break;
      case Kind::kReduce:
        reduce(spec, made);
        break;
      case Kind::kLookup:
        lookup(spec, packer, made);
        break;
      case Kind::kAttend:
        attend(spec, made);
        break;
    }
    return made;
  }

 private:
  void gemm(const InstructionSpec<scalar_t>& spec, Packer<scalar_t>& packer,
            Instruction<scalar_t>& made) const {
    require(spec.up >= 1 && spec.up < kLargest, "up >= 1", "up", spec.up);
    require(spec.down >= 1 && spec.down < kLargest, "down >= 1", "down", spec.down);
    made.up = spec.up;
    made.down = spec.down;
    for (const TapSpec<scalar_t>& tap : spec.taps) {
      made.taps.push_back({read(tap.read), made.K, tap.phase_row, tap.phase_column});
      require(static_cast<int64_t>(tap.weight.size()) == tap.read.count * spec.count,
              "a weight [features read, count]", "numel", static_cast<int64_t>(tap.weight.size()));
      made.K += tap.read.count;
    }
    int64_t total = 0;
    made.reads = joined(spec.initial, &total, &made.begins);
    made.has_initial = !made.reads.empty();
    require(!made.has_initial || total == spec.count, "initial reads of count features", "count",
            total);
    made.copies_initial = made.reads.size() > 1 || (made.has_initial && made.reads[0].step != 1);
    const int64_t bias_size = static_cast<int64_t>(spec.bias.size());
    require(bias_size == 0 || bias_size == spec.count, "a bias [count]", "numel", bias_size);

    const int64_t width = plan_.kernels.panel_width;
    const int64_t panels = (spec.count + width - 1) / width;
    scalar_t* bias = packer.take(panels * width);
    scalar_t* packed = packer.take(panels * made.K * width);
    made.bias = bias;
    made.packed = packed;
    if (packed == nullptr) return;
    // Minus zero becomes zero: then a product of zeros that is left out changes no sign.
    std::transform(spec.bias.begin(), spec.bias.end(), bias,
                   [](scalar_t value) { return value + scalar_t(0); });
    int64_t k = 0;
    for (const TapSpec<scalar_t>& tap : spec.taps) {
      const scalar_t* from = tap.weight.data();
      for (int64_t i = 0; i < tap.read.count; ++i, ++k) {
        for (int64_t m = 0; m < spec.count; ++m, ++from) {
          packed[(m / width * made.K + k) * width + m % width] = *from;
          made.finite = made.finite && std::isfinite(*from);
        }
      }
    }
  }

  // Registers are used again once nothing reads them any more.
  void pointwise(const InstructionSpec<scalar_t>& spec, Instruction<scalar_t>& made) const {
    for (const ReadSpec& operand : spec.reads) {
      require(operand.count == spec.count || operand.count == 1, "reads of count features or one",
              "count", operand.count);
      made.reads.push_back(read(operand));
      if (operand.count == 1) made.reads.back().step = 0;
      made.reads.back().count = spec.count;
    }
    const int64_t given = static_cast<int64_t>(spec.reads.size() + spec.constants.size());
    const int64_t results = given + static_cast<int64_t>(spec.steps.size());
    require(results >= 1 && results < 4096, "1 to 4095 results", "results", results);
    std::vector<int64_t> last_use(static_cast<size_t>(results), -1);
    for (size_t s = 0; s < spec.steps.size(); ++s) {
      require(spec.steps[s].args.size() <= 3 && !spec.steps[s].args.empty(), "1 to 3 operands",
              "args", static_cast<int64_t>(spec.steps[s].args.size()));
      for (const int64_t arg : spec.steps[s].args) {
        require(arg >= 0 && arg < given + static_cast<int64_t>(s), "an earlier result", "arg", arg);
        last_use[static_cast<size_t>(arg)] = static_cast<int64_t>(s);
      }
    }
    std::vector<int32_t> place(static_cast<size_t>(results)), free;
    int32_t registers = 0;
    for (int64_t g = 0; g < given; ++g) place[static_cast<size_t>(g)] = registers++;
    for (size_t s = 0; s < spec.steps.size(); ++s) {
      cpu::PointwiseStep step{spec.steps[s].op, 0, {0, 0, 0}};
      const std::vector<int64_t>& args = spec.steps[s].args;
      for (size_t a = 0; a < args.size(); ++a) {
        step.args[a] = place[static_cast<size_t>(args[a])];
        const bool again = std::find(args.begin(), args.begin() + static_cast<long>(a), args[a]) !=
                           args.begin() + static_cast<long>(a);
        if (last_use[static_cast<size_t>(args[a])] == static_cast<int64_t>(s) && !again) {
          free.push_back(step.args[a]);
        }
      }
      if (free.empty()) free.push_back(registers++);
      step.to = free.back();
      free.pop_back();
      place[static_cast<size_t>(given) + s] = step.to;
      made.steps.push_back(step);
    }
    made.result = place[static_cast<size_t>(results - 1)];
    for (size_t r = 0; r < made.reads.size(); ++r) made.read_registers.push_back(place[r]);
    for (size_t c = 0; c < spec.constants.size(); ++c) {
      made.constants.push_back(
          {static_cast<scalar_t>(spec.constants[c]), place[spec.reads.size() + c]});
    }
    made.K = registers;
  }

  void reduce(const InstructionSpec<scalar_t>& spec, Instruction<scalar_t>& made) const {
    const bool small = spec.outer >= 1 && spec.size >= 1 && spec.inner >= 1 &&
                       spec.outer < kLargest && spec.size < kLargest && spec.inner < kLargest;
    require(small, "outer, size, inner >= 1", "size", spec.size);
    int64_t total = 0;
    made.reads = joined(spec.reads, &total, &made.begins);
    require(total == spec.outer * spec.size * spec.inner, "reads of outer * size * inner features",
            "count", total);
    require(spec.count == spec.outer * spec.inner, "outer * inner results", "count", spec.count);
    made.maximum = spec.maximum;
    made.outer = spec.outer;
    made.size = spec.size;
    made.inner = spec.inner;
    made.K = total;
  }

  void lookup(const InstructionSpec<scalar_t>& spec, Packer<scalar_t>& packer,
              Instruction<scalar_t>& made) const {
    require(spec.reads.size() == 1 && spec.reads[0].count == 1, "one index", "reads",
            static_cast<int64_t>(spec.reads.size()));
    made.reads.push_back(read(spec.reads[0]));
    require(
        spec.levels >= 1 && static_cast<int64_t>(spec.weight.size()) == spec.levels * spec.count,
        "a weight [K, count]", "numel", static_cast<int64_t>(spec.weight.size()));
    made.levels = spec.levels;
    scalar_t* rows = packer.take(spec.levels * spec.count);
    made.packed = rows;
    if (rows != nullptr) std::copy(spec.weight.begin(), spec.weight.end(), rows);
  }

  void attend(const InstructionSpec<scalar_t>& spec, Instruction<scalar_t>& made) const {
    Attention& attention = made.attention;
    require(spec.heads >= 1 && spec.heads < kLongest, "heads >= 1", "heads", spec.heads);
    const bool small = spec.seen_height >= 1 && spec.seen_width >= 1 &&
                       spec.seen_height < kLongest && spec.seen_width < kLongest;
    require(small && spec.seen_height * spec.seen_width < kLongest, "1 to 2^31 positions", "width",
            spec.seen_width);
    attention.heads = spec.heads;
    attention.height = spec.seen_height;
    attention.width = spec.seen_width;
    attention.scale = spec.scale;
    made.reads = joined(spec.reads, &made.K, &made.begins);
    attention.keys = sight(spec.keys, spec.heads);
    attention.values = sight(spec.values, spec.heads);
    require(made.K == attention.keys.size * spec.heads, "as many queries as keys", "count", made.K);
    require(spec.count == attention.values.size * spec.heads, "as many results as values", "count",
            spec.count);
    attention.bias = read(spec.score_bias);
    const int64_t seen = attention.seen(), biases = attention.bias.count;
    require(biases == seen || biases == seen * spec.heads, "a bias [heads or 1, positions]",
            "count", biases);
    attention.bias_heads = biases / seen;
  }

  // Joined reads, cut where heads begin.
  Sight sight(const std::vector<ReadSpec>& specs, int64_t heads) const {
    Sight made;
    int64_t total = 0;
    made.reads = joined(specs, &total);
    require(total >= heads && total % heads == 0, "as many features for every head", "count",
            total);
    made.size = total / heads;
    made.begins.push_back(0);
    int64_t at = 0;
    for (size_t r = 0; r < made.reads.size(); ++r) {
      for (int64_t offset = 0; offset < made.reads[r].count;) {
        const int64_t first = at % made.size;
        const int64_t count = std::min(made.size - first, made.reads[r].count - offset);
        made.pieces.push_back({static_cast<int32_t>(r), offset, first, count});
        offset += count;
        at += count;
        if (at % made.size == 0) made.begins.push_back(static_cast<int32_t>(made.pieces.size()));
      }
    }
    return made;
  }

  const ProgramSpec<scalar_t>& spec_;
  const Plan<scalar_t>& plan_;
};

template <typename Visit, typename scalar_t>
void each_read(const Instruction<scalar_t>& instruction, Visit visit) {
  for (const Tap& tap : instruction.taps) {
    visit(tap.read, instruction.up == 1 && instruction.down == 1);
  }
  for (const Read& read : instruction.reads) visit(read, true);
  if (instruction.kind == Kind::kAttend) {
    visit(instruction.attention.bias, true);
    for (const Read& read : instruction.attention.keys.reads) visit(read, false);
    for (const Read& read : instruction.attention.values.reads) visit(read, false);
  }
}

// Whether `later` may run for some rows before `earlier` has run for the others.
template <typename scalar_t>
bool row_by_row(const Instruction<scalar_t>& earlier, const Instruction<scalar_t>& later) {
  bool apart = earlier.up == later.up || later.kind != Kind::kGemm || earlier.kind != Kind::kGemm;
  each_read(later, [&](const Read& read, bool same_grid) {
    if (!earlier.writes(read.grid)) return;
    apart = apart && same_grid && read.dy == 0 && read.dx == 0;
  });
  each_read(earlier, [&](const Read& read, bool) { apart = apart && !later.writes(read.grid); });
  each_read(earlier, [&](const Read& read, bool) { apart = apart && !earlier.writes(read.grid); });
  each_read(later, [&](const Read& read, bool) { apart = apart && !later.writes(read.grid); });
  return apart;
}

// Whether the Pointwise `later` computes its features block by block from blocks of `gemm` that
// are its own: then threads can share the features of both without meeting in between.
template <typename scalar_t>
bool block_by_block(const Instruction<scalar_t>& gemm, const Instruction<scalar_t>& later,
                    int64_t panel) {
  if (gemm.kind != Kind::kGemm || later.kind != Kind::kPointwise) return false;
  std::vector<int64_t> starts;
  for (const Read& read : later.reads) {
    if (!gemm.writes(read.grid)) continue;
    if (read.step != 1 || read.dy != 0 || read.dx != 0) return false;
    const int64_t start = read.start - gemm.first_in(read.grid);
    // Reads of the buffer's other features are no concern of this Gemm.
    if (start + read.count <= 0 || start >= gemm.count) continue;
    if (std::find(starts.begin(), starts.end(), start) == starts.end()) starts.push_back(start);
  }
  if (starts.empty()) return false;
  std::sort(starts.begin(), starts.end());
  for (size_t s = 0; s < starts.size(); ++s) {
    if (starts[s] != static_cast<int64_t>(s) * later.count) return false;
  }
  const bool whole = static_cast<int64_t>(starts.size()) * later.count == gemm.count;
  return whole && (starts.size() == 1 || later.count % panel == 0);
}

// Whether `later` is nothing but the rectifier of what `gemm` computes.
template <typename scalar_t>
bool rectifies(const WhenSpec& when, const Instruction<scalar_t>& gemm,
               const Instruction<scalar_t>& later) {
  if (gemm.kind != Kind::kGemm || gemm.rectified >= 0 || later.kind != Kind::kPointwise)
    return false;
  if (later.steps.size() != 1 || later.steps[0].op != cpu::PointwiseOp::kRelu) return false;
  if (later.reads.size() != 1 || later.count != gemm.count || later.out == gemm.out) return false;
  const Read& read = later.reads[0];
  bool same = read.grid == gemm.out && read.start == gemm.first && read.step == 1;
  same = same && read.dy == 0 && read.dx == 0 && read.top <= 0 && read.left <= 0;
  same = same && read.bottom >= when.height && read.right >= when.width;
  each_read(gemm, [&](const Read& its, bool) { same = same && its.grid != later.out; });
  return same;
}

// Lets a Gemm write the rectifier's result that follows it too: one walk less over small rows.
template <typename scalar_t>
void join_rectifiers(std::vector<std::pair<WhenSpec, Instruction<scalar_t>>>& list) {
  std::vector<std::pair<WhenSpec, Instruction<scalar_t>>> kept;
  for (auto& [when, instruction] : list) {
    if (!kept.empty() && kept.back().first == when &&
        rectifies(when, kept.back().second, instruction)) {
      kept.back().second.rectified = instruction.out;
      kept.back().second.rectified_first = instruction.first;
    } else {
      kept.emplace_back(when, std::move(instruction));
    }
  }
  list = std::move(kept);
}

// Input that is dealt out in this many numbers a symbol is zero nearly everywhere.
constexpr int64_t kOneHot = 16;
// Results for which it takes longer to read the weights of an input than to see whether it is zero.
constexpr int64_t kWide = 128;

// Marks the Gemms that read what is often zero: a comparison's results, or a rectifier's.
template <typename scalar_t>
void find_sparse(std::vector<std::vector<std::pair<WhenSpec, Instruction<scalar_t>>>>& lists,
                 int64_t buffers, bool one_hot) {
  enum : char { kNothing, kOneOfMany, kHalf, kNumbers };  // how many of the features are not zero
  std::vector<char> holds(static_cast<size_t>(buffers), kNothing);
  holds[0] = one_hot ? kOneOfMany : kNumbers;
  for (const auto& list : lists) {
    for (const auto& [when, instruction] : list) {
      char& held = holds[static_cast<size_t>(instruction.out)];
      char holding = kNumbers;
      if (instruction.kind == Kind::kPointwise && !instruction.steps.empty()) {
        const cpu::PointwiseOp last = instruction.steps.back().op;
        if (last == cpu::PointwiseOp::kEq) holding = kOneOfMany;
        if (last == cpu::PointwiseOp::kRelu) holding = kHalf;
      }
      held = std::max(held, holding);
    }
  }
  for (auto& list : lists) {
    for (auto& [when, instruction] : list) {
      for (const Tap& tap : instruction.taps) {
        if (tap.read.grid >= buffers || !instruction.finite) continue;
        const char held = holds[static_cast<size_t>(tap.read.grid)];
        const bool pays = held == kOneOfMany || (held == kHalf && instruction.count >= kWide);
        instruction.sparse = instruction.sparse || pays;
      }
    }
  }
}

template <typename scalar_t>
std::vector<Group<scalar_t>> grouped(
    const std::vector<std::pair<WhenSpec, Instruction<scalar_t>>>& list, bool team, int64_t panel) {
  std::vector<Group<scalar_t>> groups;
  for (const auto& [when, instruction] : list) {
    bool joins = !groups.empty() && groups.back().when == when;
    if (joins) {
      const auto& members = groups.back().instructions;
      for (const auto& member : members) joins = joins && row_by_row(member, instruction);
      if (team)
        joins = joins && members.size() == 1 && block_by_block(members[0], instruction, panel);
    }
    if (!joins) groups.push_back({when, {}, 1});
    Group<scalar_t>& group = groups.back();
    group.instructions.push_back(instruction);
    group.up = std::max(group.up, instruction.up);
  }
  return groups;
}

size_t list_of(const WhenSpec& when) {
  return when.span ? 0 : 1 + static_cast<size_t>(when.after);
}

// What an instruction that runs at pixels computes before the scan, as a part of a span.
WhenSpec before_scan(WhenSpec when) {
  const int64_t scale = when.column_scale;
  const int64_t width = when.column_offset < 0 ? (scale - 1 - when.column_offset) / scale : 0;
  when.width = std::min(width, when.width);
  when.span = true;
  when.after = 0;
  return when;
}

void check_when(const WhenSpec& when, int64_t draws) {
  require(when.height >= 0 && when.height < kLongest, "height >= 0", "height", when.height);
  require(when.width >= 0 && when.width < kLongest, "width >= 0", "width", when.width);
  require(when.after >= 0 && when.after <= draws, "after in 0 .. draws", "after", when.after);
  require(when.row_scale >= 1 && when.row_scale < kLargest, "scale >= 1", "row_scale",
          when.row_scale);
  require(when.column_scale >= 1 && when.column_scale < kLargest, "scale >= 1", "column_scale",
          when.column_scale);
  require(std::abs(when.row_offset) < kLargest, "a small offset", "row_offset", when.row_offset);
  require(std::abs(when.column_offset) < kLargest, "a small offset", "column_offset",
          when.column_offset);
  require(when.before >= 0 && when.before < kLargest, "before >= 0", "before", when.before);
}

}  // namespace

void FreeMemory::operator()(void* data) const {
  if (mapped > 0) {
    munmap(data, mapped);
  } else {
    std::free(data);
  }
}

Memory::Memory(size_t bytes) : bytes_(bytes) {
  if (bytes >= kHugePage) {
    data_ = map_huge_pages(bytes);
    if (data_ != nullptr) return;
  }
  const size_t rounded = (bytes + kLine) / kLine * kLine;
  data_.reset(std::aligned_alloc(kLine, rounded));
  if (data_ == nullptr) throw std::bad_alloc();
  std::memset(data_.get(), 0, rounded);
}

// Fresh from the system: what a process has used before and freed stays in small pages.
Memory::Owner Memory::map_huge_pages(size_t bytes) {
  const size_t rounded = (bytes + kHugePage - 1) / kHugePage * kHugePage;
  const size_t most = rounded + kHugePage;  // of which some huge pages are whole
  void* const mapped =
      mmap(nullptr, most, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (mapped == MAP_FAILED) return nullptr;
  char* const begin = static_cast<char*>(mapped);
  const size_t before = (kHugePage - reinterpret_cast<uintptr_t>(begin) % kHugePage) % kHugePage;
  if (before > 0) munmap(begin, before);
  if (before < kHugePage) munmap(begin + before + rounded, kHugePage - before);
#if defined(MADV_HUGEPAGE)
  madvise(begin + before, rounded, MADV_HUGEPAGE);
#endif
  return Owner(begin + before, FreeMemory{rounded});
}

template <typename scalar_t>
Plan<scalar_t>::Plan(const ProgramSpec<scalar_t>& spec)
    : colours(spec.colours),
      encoded(spec.encoded),
      height(spec.height),
      width(spec.width),
      span(spec.span),
      kernels(kernels_of_this_machine<scalar_t>()),
      buffer_count(static_cast<int64_t>(spec.buffers.size())) {
  require(colours >= 1 && colours < kLargest, "colours >= 1", "colours", colours);
  require(encoded >= 1 && encoded < kLargest, "encoded >= 1", "encoded", encoded);
  require(height >= 1 && height < kLongest, "height in 1 .. 2^31", "height", height);
  require(width >= 1 && width < kLongest, "width in 1 .. 2^31", "width", width);
  require(span >= 1, "span >= 1", "span", span);
  require(!spec.draws.empty(), "draws", "draws", 0);
  require(buffer_count >= 1, "a buffer of the input", "buffers", buffer_count);
  for (const BufferSpec& buffer : spec.buffers) {
    require(buffer.features >= 1 && buffer.features < kLargest, "features >= 1", "features",
            buffer.features);
    require(buffer.height >= 1 && buffer.height < kLongest, "height in 1 .. 2^31", "height",
            buffer.height);
    require(buffer.width >= 1 && buffer.width < kLongest, "width in 1 .. 2^31", "width",
            buffer.width);
    require(buffer.rows >= 1 && buffer.rows < kLargest, "rows >= 1", "rows", buffer.rows);
    require(buffer.columns >= 1 && buffer.columns < kLargest, "columns >= 1", "columns",
            buffer.columns);
    grids.push_back({buffer.rows, buffer.columns, buffer.features,
                     stride_of<scalar_t>(buffer.features), buffer.height, buffer.width, true});
  }
  require(spec.buffers[0].features == colours * encoded, "colours * encoded features in buffer 0",
          "features", spec.buffers[0].features);
  for (const TableSpec<scalar_t>& table : spec.tables) {
    require(table.features >= 1 && table.features < kLargest, "features >= 1", "features",
            table.features);
    const bool constant = table.condition < 0;
    const int64_t numbers = static_cast<int64_t>(table.data.size());
    require(!constant || numbers == table.rows * table.columns * table.features,
            "data [1, rows, columns, features]", "numel", numbers);
    const bool axes =
        table.rows >= 1 && table.rows < kLongest && table.columns >= 1 && table.columns < kLongest;
    require(axes, "rows and columns >= 1", "rows", table.rows);
    grids.push_back({table.rows, table.columns, table.features, stride_of<scalar_t>(table.features),
                     table.rows == 1 ? kEverywhere : table.rows,
                     table.columns == 1 ? kEverywhere : table.columns, false, table.condition});
  }

  const Compiler<scalar_t> compiler(spec, *this);
  const size_t list_count = spec.draws.size() + 2;
  std::vector<Instruction<scalar_t>> compiled;
  Packer<scalar_t> packer;
  for (const bool count_only : {true, false}) {
    if (!count_only) {
      memory = Memory(packer.bytes());
      packer.start(memory.data());
    }
    compiled.assign(spec.instructions.size(), {});
    // Weights lie in the order in which a pixel reads them, so that the next can be asked for.
    for (size_t list = 0; list < list_count; ++list) {
      for (size_t k = 0; k < compiled.size(); ++k) {
        const InstructionSpec<scalar_t>& instruction = spec.instructions[k];
        check_when(instruction.when, static_cast<int64_t>(spec.draws.size()));
        if (list_of(instruction.when) == list)
          compiled[k] = compiler.instruction(instruction, packer);
      }
    }
    for (size_t t = 0; t < spec.tables.size(); ++t) {
      const TableSpec<scalar_t>& table = spec.tables[t];
      Grid<scalar_t>& grid = grids[spec.buffers.size() + t];
      if (table.condition >= 0) continue;
      scalar_t* data = packer.take(grid.rows * grid.columns * grid.stride);
      grid.constant = data;
      for (int64_t p = 0; data != nullptr && p < grid.rows * grid.columns; ++p) {
        std::copy_n(table.data.data() + p * grid.features, grid.features, data + p * grid.stride);
      }
    }
  }
  std::vector<std::vector<std::pair<WhenSpec, Instruction<scalar_t>>>> flat(list_count);
  for (size_t k = 0; k < compiled.size(); ++k) {
    const WhenSpec& when = spec.instructions[k].when;
    flat[list_of(when)].emplace_back(when, compiled[k]);
    if (!when.span && when.before > 0) flat[0].emplace_back(before_scan(when), compiled[k]);
  }
  find_sparse(flat, buffer_count, encoded >= kOneHot);
  for (auto& list : flat) join_rectifiers(list);
  for (const auto& list : flat) {
    for (const auto& [when, instruction] : list) {
      if (instruction.sparse) most_live = std::max(most_live, instruction.K);
      most_reads = std::max({most_reads, static_cast<int64_t>(instruction.taps.size()),
                             static_cast<int64_t>(instruction.reads.size())});
      if (instruction.kind == Kind::kPointwise)
        most_registers = std::max(most_registers, instruction.K);
      if (instruction.has_initial) most_features = std::max(most_features, instruction.count);
      if (instruction.kind == Kind::kReduce || instruction.kind == Kind::kAttend)
        most_features = std::max(most_features, instruction.K);
      if (instruction.kind == Kind::kAttend) {
        const Attention& attention = instruction.attention;
        for (const std::vector<Read>& reads : {attention.keys.reads, attention.values.reads}) {
          for (const Read& read : reads) {
            Grid<scalar_t>& seen = grids[static_cast<size_t>(read.grid)];
            seen.by_image = seen.wraps;
          }
        }
        most_reads = std::max(most_reads, 1 + static_cast<int64_t>(instruction.reads.size()));
        most_seen = std::max(most_seen, attention.seen());
        most_depth = std::max({most_depth, attention.keys.size, attention.values.size});
        most_sights = std::max({most_sights, static_cast<int64_t>(attention.keys.reads.size()),
                                static_cast<int64_t>(attention.values.reads.size())});
      }
      for (const Tap& tap : instruction.taps) {
        most_features =
            std::max(most_features, tap.read.count * std::max<int64_t>(1, std::abs(tap.read.step)));
      }
    }
    lists.push_back(grouped(list, false, kernels.panel_width));
    team_lists.push_back(grouped(list, true, kernels.panel_width));
  }
  for (const DrawSpec& draw : spec.draws) {
    require(draw.count >= 1 && draw.first >= 0 && draw.first + draw.count <= colours,
            "colours that exist", "first", draw.first);
    Draw<scalar_t> made{draw.first, draw.count, 0, {}};
    made.reads = compiler.joined(draw.reads, &made.parameters);
    most_levels = std::max(most_levels, made.parameters);
    most_reads = std::max(most_reads, static_cast<int64_t>(made.reads.size()));
    draws.push_back(made);
  }
}

template struct Plan<float>;
template struct Plan<double>;

}  // namespace genfast::sampling
