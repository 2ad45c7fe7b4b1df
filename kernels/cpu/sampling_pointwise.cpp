#include "kernels/cpu/vector_math.h"
#include "kernels/sampling.h"

namespace genfast::cpu {
namespace {

template <typename scalar_t, typename Function>
GENFAST_INLINE Vector<scalar_t> each_lane(Vector<scalar_t> x, Function function) {
  Vector<scalar_t> result;
  for (int i = 0; i < kLanes<scalar_t>; ++i) result[i] = function(x[i]);
  return result;
}

template <typename scalar_t, typename Function>
GENFAST_INLINE Vector<scalar_t> each_lane(Vector<scalar_t> x, Vector<scalar_t> y,
                                          Function function) {
  Vector<scalar_t> result;
  for (int i = 0; i < kLanes<scalar_t>; ++i) result[i] = function(x[i], y[i]);
  return result;
}

template <typename scalar_t>
GENFAST_INLINE Vector<scalar_t> truth(IndexVector<scalar_t> mask) {
  return select<scalar_t>(mask, broadcast(scalar_t(1)), Vector<scalar_t>{});
}

template <typename scalar_t>
GENFAST_INLINE scalar_t remainder_of(scalar_t a, scalar_t b) {
  const scalar_t left = std::fmod(a, b);
  return left != 0 && (b < 0) != (left < 0) ? left + b : left;
}

template <typename scalar_t>
GENFAST_INLINE Vector<scalar_t> softplus_of(Vector<scalar_t> x, Vector<scalar_t> beta,
                                            Vector<scalar_t> threshold) {
  const Vector<scalar_t> scaled = x * beta;
  const Vector<scalar_t> soft =
      each_lane<scalar_t>(exp_of<scalar_t>(scaled), [](scalar_t e) { return std::log1p(e); });
  return select<scalar_t>(scaled > threshold, x, soft / beta);
}

template <typename scalar_t>
GENFAST_INLINE Vector<scalar_t> gelu_of(Vector<scalar_t> x) {
  const scalar_t root = scalar_t(0.70710678118654752440);
  const auto erf = [](scalar_t a) { return std::erf(a); };
  return x * scalar_t(0.5) * (scalar_t(1) + each_lane<scalar_t>(x * root, erf));
}

template <typename scalar_t>
GENFAST_INLINE Vector<scalar_t> gelu_tanh_of(Vector<scalar_t> x) {
  const scalar_t beta = scalar_t(0.79788456080286535588), kappa = scalar_t(0.044715);
  return x * scalar_t(0.5) * (scalar_t(1) + tanh_of<scalar_t>(beta * (x + kappa * (x * x * x))));
}

// The registers of one chunk.
template <typename scalar_t>
struct Registers {
  scalar_t* scratch;
  int64_t count;  // numbers in use, whole vectors

  scalar_t* at(int32_t number) const { return scratch + number * kPointwiseChunk; }

  template <typename Function>
  void map(const PointwiseStep& step, Function function) const {
    scalar_t* to = at(step.to);
    const scalar_t* a = at(step.args[0]);
    for (int64_t i = 0; i < count; i += kLanes<scalar_t>) store(to + i, function(load(a + i)));
  }

  template <typename Function>
  void map2(const PointwiseStep& step, Function function) const {
    scalar_t* to = at(step.to);
    const scalar_t* a = at(step.args[0]);
    const scalar_t* b = at(step.args[1]);
    for (int64_t i = 0; i < count; i += kLanes<scalar_t>) {
      store(to + i, function(load(a + i), load(b + i)));
    }
  }

  template <typename Function>
  void map3(const PointwiseStep& step, Function function) const {
    scalar_t* to = at(step.to);
    const scalar_t* a = at(step.args[0]);
    const scalar_t* b = at(step.args[1]);
    const scalar_t* c = at(step.args[2]);
    for (int64_t i = 0; i < count; i += kLanes<scalar_t>) {
      store(to + i, function(load(a + i), load(b + i), load(c + i)));
    }
  }
};

template <typename scalar_t>
void run_step(const PointwiseStep& step, const Registers<scalar_t>& registers) {
  using V = Vector<scalar_t>;
  using Op = PointwiseOp;
  const V zero{}, one = broadcast(scalar_t(1));
#define GENFAST_MAP(name, expression) \
  case Op::name:                      \
    return registers.map(step, [=](V a) -> V { return expression; })
#define GENFAST_MAP_LANES(name, expression)                                 \
  case Op::name:                                                            \
    return registers.map(step, [](V x) -> V {                               \
      return each_lane<scalar_t>(x, [](scalar_t a) { return expression; }); \
    })
#define GENFAST_MAP2(name, expression) \
  case Op::name:                       \
    return registers.map2(step, [=](V a, V b) -> V { return expression; })
#define GENFAST_MAP2_LANES(name, expression)                                               \
  case Op::name:                                                                           \
    return registers.map2(step, [](V x, V y) -> V {                                        \
      return each_lane<scalar_t>(x, y, [](scalar_t a, scalar_t b) { return expression; }); \
    })
#define GENFAST_MAP3(name, expression) \
  case Op::name:                       \
    return registers.map3(step, [=](V a, V b, V c) -> V { return expression; })
  switch (step.op) {
    GENFAST_MAP(kNeg, -a);
    GENFAST_MAP_LANES(kAbs, std::fabs(a));
    GENFAST_MAP(kSign, truth<scalar_t>(a > zero) - truth<scalar_t>(a < zero));
    GENFAST_MAP(kReciprocal, one / a);
    GENFAST_MAP_LANES(kSqrt, std::sqrt(a));
    GENFAST_MAP_LANES(kRsqrt, scalar_t(1) / std::sqrt(a));
    GENFAST_MAP(kExp, exp_of<scalar_t>(a));
    GENFAST_MAP(kExpm1, expm1_of<scalar_t>(a));
    GENFAST_MAP_LANES(kLog, std::log(a));
    GENFAST_MAP_LANES(kLog1p, std::log1p(a));
    GENFAST_MAP_LANES(kSin, std::sin(a));
    GENFAST_MAP_LANES(kCos, std::cos(a));
    GENFAST_MAP_LANES(kErf, std::erf(a));
    GENFAST_MAP(kTanh, tanh_of<scalar_t>(a));
    GENFAST_MAP(kSigmoid, sigmoid_of<scalar_t>(a));
    GENFAST_MAP(kRelu, select<scalar_t>(a <= zero, zero, a));
    GENFAST_MAP(kSilu, a * sigmoid_of<scalar_t>(a));
    GENFAST_MAP(kGelu, gelu_of<scalar_t>(a));
    GENFAST_MAP(kGeluTanh, gelu_tanh_of<scalar_t>(a));
    GENFAST_MAP_LANES(kFloor, std::floor(a));
    GENFAST_MAP_LANES(kCeil, std::ceil(a));
    GENFAST_MAP_LANES(kRound, std::nearbyint(a));
    GENFAST_MAP_LANES(kTrunc, std::trunc(a));
    GENFAST_MAP(kNot, truth<scalar_t>(a == zero));
    GENFAST_MAP2(kAdd, a + b);
    GENFAST_MAP2(kSub, a - b);
    GENFAST_MAP2(kMul, a * b);
    GENFAST_MAP2(kDiv, a / b);
    GENFAST_MAP2_LANES(kPow, std::pow(a, b));
    GENFAST_MAP2_LANES(kRemainder, remainder_of(a, b));
    GENFAST_MAP2_LANES(kFmod, std::fmod(a, b));
    // NaN on either side is the result, as in PyTorch.
    GENFAST_MAP2(kMaximum, select<scalar_t>((a > b) | (a != a), a, b));
    GENFAST_MAP2(kMinimum, select<scalar_t>((a < b) | (a != a), a, b));
    GENFAST_MAP2(kEq, truth<scalar_t>(a == b));
    GENFAST_MAP2(kNe, truth<scalar_t>(a != b));
    GENFAST_MAP2(kLt, truth<scalar_t>(a < b));
    GENFAST_MAP2(kLe, truth<scalar_t>(a <= b));
    GENFAST_MAP2(kGt, truth<scalar_t>(a > b));
    GENFAST_MAP2(kGe, truth<scalar_t>(a >= b));
    GENFAST_MAP2(kElu, select<scalar_t>(a > zero, a, b * expm1_of<scalar_t>(a)));
    GENFAST_MAP2(kLeakyRelu, select<scalar_t>(a > zero, a, b * a));
    GENFAST_MAP2(kGate, tanh_of<scalar_t>(a) * sigmoid_of<scalar_t>(b));
    GENFAST_MAP3(kWhere, select<scalar_t>(a != zero, b, c));
    GENFAST_MAP3(kSoftplus, softplus_of<scalar_t>(a, b, c));
  }
#undef GENFAST_MAP
#undef GENFAST_MAP_LANES
#undef GENFAST_MAP2
#undef GENFAST_MAP2_LANES
#undef GENFAST_MAP3
}

// Features begin .. end - 1 of a row into `to`; what follows in the last vector is of no account.
template <typename scalar_t>
GENFAST_INLINE void load_row(const scalar_t* from, int64_t step, scalar_t fill, int64_t begin,
                             int64_t end, scalar_t* to) {
  constexpr int64_t lanes = kLanes<scalar_t>;
  const int64_t count = end - begin;
  if (from == nullptr || step == 0) {
    const Vector<scalar_t> value = broadcast(from == nullptr ? fill : from[0]);
    for (int64_t i = 0; i < count; i += lanes) store(to + i, value);
  } else if (step == 1) {
    from += begin;
    int64_t i = 0;
    for (; i + lanes <= count; i += lanes) store(to + i, load(from + i));
    if (i < count) store(to + i, load_first(from + i, count - i));
  } else {
    from += begin * step;
    int64_t i = 0;
    for (; i < count; ++i) to[i] = from[i * step];
    for (; i % lanes != 0; ++i) to[i] = 0;
  }
}

template <typename scalar_t>
GENFAST_INLINE void store_row(const scalar_t* from, int64_t begin, int64_t end, scalar_t* to) {
  constexpr int64_t lanes = kLanes<scalar_t>;
  const int64_t count = end - begin;
  to += begin;
  int64_t i = 0;
  for (; i + lanes <= count; i += lanes) store(to + i, load(from + i));
  if (i < count) store_first(to + i, load(from + i), count - i);
}

}  // namespace

template <SimdLevel level, typename scalar_t>
void sampling_pointwise(const PointwiseCall<scalar_t>& call) {
  constexpr int64_t lanes = kLanes<scalar_t>;
  for (int64_t begin = call.begin; begin < call.end; begin += kPointwiseChunk) {
    const int64_t end = call.end - begin < kPointwiseChunk ? call.end : begin + kPointwiseChunk;
    const int64_t padded = (end - begin + lanes - 1) / lanes * lanes;
    const int64_t together = kPointwiseChunk / padded;  // rows of a chunk
    for (int64_t row = 0; row < call.rows; row += together) {
      const int64_t rows = call.rows - row < together ? call.rows - row : together;
      const Registers<scalar_t> registers{call.scratch, rows * padded};
      for (int64_t r = 0; r < call.read_count; ++r) {
        const PointwiseRead<scalar_t>& read = call.reads[r];
        scalar_t* to = registers.at(read.to);
        for (int64_t i = 0; i < rows; ++i) {
          load_row(read.rows[row + i], read.step, read.fill, begin, end, to + i * padded);
        }
      }
      for (int64_t c = 0; c < call.constant_count; ++c) {
        const Vector<scalar_t> value = broadcast(call.constants[c].value);
        scalar_t* to = registers.at(call.constants[c].to);
        for (int64_t i = 0; i < registers.count; i += lanes) store(to + i, value);
      }
      for (int64_t s = 0; s < call.step_count; ++s) run_step(call.steps[s], registers);
      const scalar_t* result = registers.at(call.result);
      for (int64_t i = 0; i < rows; ++i) {
        store_row(result + i * padded, begin, end, call.out[row + i]);
      }
    }
  }
}

template void sampling_pointwise<GENFAST_SIMD_LEVEL, float>(const PointwiseCall<float>&);
template void sampling_pointwise<GENFAST_SIMD_LEVEL, double>(const PointwiseCall<double>&);

}  // namespace genfast::cpu
