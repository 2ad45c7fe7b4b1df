// Runs the sampling engine's core alone, so that sanitizers see nothing but it: many threads, every
// kind of instruction, results compared bit for bit. Exits with 0 if all is well.
#include <cstdio>
#include <cstring>
#include <limits>
#include <random>

#include "csrc/sampling_run.h"

namespace {

using namespace genfast::sampling;

constexpr int64_t kHeight = 5, kWidth = 7, kLevels = 6;

template <typename scalar_t>
struct Maker {
  std::mt19937 random{1};
  ProgramSpec<scalar_t> spec{1, 1, kHeight, kWidth, kWidth, {}, {}, {}, {}};

  std::vector<scalar_t> numbers(int64_t count) {
    std::normal_distribution<double> normal(0, 0.3);
    std::vector<scalar_t> made;
    for (int64_t i = 0; i < count; ++i) made.push_back(static_cast<scalar_t>(normal(random)));
    return made;
  }

  int64_t buffer(int64_t features, int64_t rows = 2) {
    spec.buffers.push_back({features, kHeight, kWidth, rows, kWidth});
    return static_cast<int64_t>(spec.buffers.size()) - 1;
  }

  ReadSpec read(int64_t source, int64_t start, int64_t count, int64_t dy = 0, int64_t dx = 0,
                bool table = false) {
    return {source, start, 1, count, dy, dx, 0, kHeight, 0, kWidth, 0.5, table};
  }

  InstructionSpec<scalar_t>& add(Kind kind, int64_t out, int64_t first, int64_t count, bool span) {
    InstructionSpec<scalar_t> made{};
    made.kind = kind;
    made.out = out;
    made.first = first;
    made.count = count;
    made.when = {kHeight, kWidth, span, 0, 1, 0, 1, 0};
    spec.instructions.push_back(made);
    return spec.instructions.back();
  }

  int64_t conv(int64_t from, int64_t features, int64_t count, int64_t dy, bool span) {
    const int64_t out = buffer(count);
    auto& made = add(Kind::kGemm, out, 0, count, span);
    for (int64_t dx = -1; dx <= (dy < 0 ? 1 : -1); ++dx) {
      made.taps.push_back({read(from, 0, features, dy, dx), numbers(features * count), 0, 0});
    }
    made.bias = numbers(count);
    return out;
  }

  int64_t gate(int64_t from, int64_t count, bool span) {
    using Op = genfast::cpu::PointwiseOp;
    const int64_t out = buffer(count);
    auto& made = add(Kind::kPointwise, out, 0, count, span);
    made.reads = {read(from, 0, count), read(from, count, count), read(0, 0, count, 0, 0, true)};
    made.constants = {0.25};
    made.steps = {{Op::kTanh, {0}},
                  {Op::kSigmoid, {1}},
                  {Op::kMul, {4, 5}},
                  {Op::kAdd, {6, 2}},
                  {Op::kMul, {7, 3}}};
    return out;
  }

  // Three heads over what is left of two rows of a ring; some pixels see nothing.
  int64_t attention(int64_t from, int64_t queries) {
    constexpr int64_t positions = kHeight * kWidth, depth = 17, width = 21;
    TableSpec<scalar_t> bias{positions, kHeight, kWidth, numbers(positions * positions), -1};
    for (int64_t at = 0; at < positions; ++at) {
      for (int64_t q = 0; q < positions; ++q) {
        const bool there = q <= at && q / kWidth >= at / kWidth - 1 && at % 5 != 4;
        scalar_t& number = bias.data[static_cast<size_t>(at * positions + q)];
        if (!there) number = -std::numeric_limits<scalar_t>::infinity();
      }
    }
    spec.tables.push_back(bias);
    const int64_t table = static_cast<int64_t>(spec.tables.size()) - 1;
    const int64_t out = buffer(3 * width);
    auto& made = add(Kind::kAttend, out, 0, 3 * width, false);
    made.reads = {read(queries, 0, 3 * depth)};
    made.keys = {read(from, 0, 20), read(from, 13, 3 * depth - 20)};
    made.values = {read(from, 1, 3 * width)};
    made.score_bias = read(table, 0, positions, 0, 0, true);
    made.heads = 3;
    made.seen_height = kHeight;
    made.seen_width = kWidth;
    made.scale = 0.25;
    return out;
  }

  // Two columns before every row and the row, each of which sees itself and the one before.
  int64_t behind_columns(int64_t from, int64_t features, int64_t count) {
    constexpr int64_t before = 2;
    for (const bool first : {true, false}) {
      const int64_t out = buffer(count);
      spec.buffers.back().width += before;
      spec.buffers.back().columns += before;
      auto& made = add(Kind::kGemm, out, 0, count, false);
      made.when.width += before;
      made.when.column_offset = -before;
      made.when.before = before;
      made.bias = numbers(count);
      if (first) {
        made.taps.push_back({read(from, 0, features, 0, -before), numbers(features * count), 0, 0});
      } else {
        for (const int64_t dx : {-1, 0}) {
          ReadSpec seen = read(out - 1, 0, count, 0, dx);
          seen.right += before;
          made.taps.push_back({seen, numbers(count * count), 0, 0});
        }
      }
    }
    return static_cast<int64_t>(spec.buffers.size()) - 1;
  }

  ProgramSpec<scalar_t> build() {
    buffer(1, kHeight);
    spec.tables.push_back({131, 1, 1, numbers(131), -1});
    spec.tables.push_back({3, 1, 1, {}, 0});
    const int64_t above = gate(conv(0, 1, 262, -1, true), 131, true);
    const int64_t left = gate(conv(0, 1, 128, 0, false), 64, false);
    const int64_t joined = conv(above, 131, 64, 0, false);
    auto& again = add(Kind::kGemm, buffer(64), 0, 64, false);
    again.initial = {read(joined, 0, 30), read(left, 30, 34)};
    again.taps.push_back({read(left, 0, 64), numbers(64 * 64), 0, 0});
    const int64_t peak = buffer(2);
    auto& reduce = add(Kind::kReduce, peak, 0, 2, false);
    reduce.reads = {read(again.out, 0, 64), read(1, 0, 2, 0, 0, true)};
    reduce.outer = 2;
    reduce.size = 33;
    const int64_t logits = conv(again.out, 64, kLevels, 0, false);
    spec.instructions.back().taps.push_back({read(peak, 0, 2), numbers(2 * kLevels), 0, 0});
    const int64_t past = attention(left, above);
    const int64_t behind = behind_columns(left, 64, 67);
    const int64_t shifted = buffer(kLevels);
    auto& last = add(Kind::kGemm, shifted, 0, kLevels, false);
    last.initial = {read(logits, 0, kLevels)};
    last.taps.push_back({read(past, 0, 63), numbers(63 * kLevels), 0, 0});
    for (const int64_t dx : {0, 2}) {
      ReadSpec seen = read(behind, 0, 67, 0, dx);
      seen.right += 2;
      last.taps.push_back({seen, numbers(67 * kLevels), 0, 0});
    }
    spec.draws.push_back({0, 1, {read(shifted, 0, kLevels)}});
    return spec;
  }
};

template <typename scalar_t>
struct Result {
  std::vector<int32_t> symbols;
  std::vector<double> log_probs;
  std::vector<scalar_t> parameters;

  bool operator==(const Result&) const = default;
};

// Two distributions of which six numbers can be the parameters.
constexpr genfast::cpu::DrawRule kCategorical{genfast::cpu::DrawKind::kCategorical, kLevels, 1,
                                              kLevels, 1};
constexpr genfast::cpu::DrawRule kMixture{
    genfast::cpu::DrawKind::kLogisticMixture, kLevels, 1, kLevels, 2, 2, -7};

template <typename scalar_t>
Result<scalar_t> run_all(const std::shared_ptr<const Plan<scalar_t>>& plan, int64_t n,
                         int threads) {
  const size_t pixels = static_cast<size_t>(n * kHeight * kWidth);
  std::mt19937 random(static_cast<unsigned>(n));
  std::vector<float> noise(2 * pixels);
  for (float& u : noise) u = static_cast<float>(random() >> 8) * 0x1p-24f;
  std::vector<scalar_t> values(kLevels), labels(static_cast<size_t>(n) * 3), x(pixels);
  for (size_t k = 0; k < values.size(); ++k) values[k] = static_cast<scalar_t>(k) / 5;
  for (size_t i = 0; i < pixels; ++i) x[i] = static_cast<scalar_t>(noise[i]);
  for (size_t i = 0; i < labels.size(); ++i) labels[i] = static_cast<scalar_t>(i % 7) / 7;
  const std::vector<Condition<scalar_t>> conditions{{labels.data(), n, 1, 1}};

  Result<scalar_t> result;
  result.log_probs.resize(static_cast<size_t>(n));
  result.parameters.resize(pixels * kLevels);
  for (const auto& rule : {kCategorical, kMixture}) {
    std::vector<int32_t> symbols(pixels);
    DrawJob<scalar_t> job{rule, 0.9, 0, noise.data()};
    job.levels = symbols.data();
    job.values = values.data();
    job.log_probs = result.log_probs.data();
    Run<scalar_t> sampling(plan, n, threads, conditions);
    while (!sampling.position().done) sampling.sample(job, 2, threads);
    result.symbols.insert(result.symbols.end(), symbols.begin(), symbols.end());
  }
  Run<scalar_t> forcing(plan, n, threads, conditions);
  forcing.forced(x.data(), {result.parameters.data()}, threads);
  Run<scalar_t> stepping(plan, n, threads, conditions);
  std::vector<scalar_t> step(static_cast<size_t>(n * kLevels)), first(static_cast<size_t>(n));
  for (int i = 0; i < 9; ++i) {
    stepping.parameters(step.data(), threads);
    stepping.supply(first.data());
  }
  return result;
}

template <typename scalar_t>
bool check() {
  const auto plan = std::make_shared<const Plan<scalar_t>>(Maker<scalar_t>().build());
  for (const int64_t n : {1, 2, 13}) {
    share_everything(false);
    const Result<scalar_t> expected = run_all<scalar_t>(plan, n, 1);
    share_everything(true);
    for (const int threads : {2, 3, 5}) {
      if (!(run_all<scalar_t>(plan, n, threads) == expected)) {
        std::printf("n=%d threads=%d: results differ\n", static_cast<int>(n), threads);
        return false;
      }
    }
  }
  return true;
}

}  // namespace

int main() {
  using genfast::cpu::SimdLevel;
  for (const SimdLevel level : {SimdLevel::kBaseline, SimdLevel::kAvx2, SimdLevel::kAvx512}) {
    if (!genfast::cpu::set_simd_level(level)) continue;
    if (!check<float>() || !check<double>()) return 1;
    std::printf("%s: well\n", genfast::cpu::simd_level_name(level));
  }
  return 0;
}
