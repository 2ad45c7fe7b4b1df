// Arithmetic of the sampling engine: what its instructions do to a few rows of numbers. A row is
// one image at one position; every row has its own pointers, so that caches may lie anywhere.
#pragma once

#include <cstdint>

#include "kernels/cpu/simd.h"

namespace genfast::cpu {

// Rows of one call: enough to reuse weights from cache, few enough that pointers stay there too.
constexpr int64_t kSamplingRows = 96;

// Weights are packed in panels of two vectors of output features: [panel][k][2 * lanes], padded
// with zeros. k counts the features of all taps, in order.
constexpr int64_t kPanelVectors = 2;

template <SimdLevel level, typename scalar_t>
constexpr int64_t kPanelWidth = kPanelVectors *
                                (level == SimdLevel::kAvx512 ? 64
                                 : level == SimdLevel::kAvx2 ? 32
                                                             : 16) /
                                static_cast<int64_t>(sizeof(scalar_t));

template <typename scalar_t>
struct GemmTap {
  const scalar_t* const* rows;  // per row its first feature; null: outside, contributes nothing
  int64_t first_k;              // row of the panel where the tap's weights begin
  int64_t count;
  int64_t step;
};

// A number that is not zero, and the row of a panel that it is multiplied by.
template <typename scalar_t>
struct LiveInput {
  int64_t k;
  scalar_t value;
};

// out[row][features] = initial + bias + sum over taps. Each result is one chain of fused
// multiply-adds.
template <typename scalar_t>
struct GemmCall {
  const GemmTap<scalar_t>* taps;
  int64_t tap_count;
  int64_t rows;
  scalar_t* const* out;
  scalar_t* const* rectified;      // per row: gets the results too, zero where negative; or null
  const scalar_t* const* initial;  // per row [features]; null: zero
  const scalar_t* bias;            // padded to whole panels
  const scalar_t* packed;
  int64_t K;              // rows of a panel
  int64_t features;       // of the whole instruction
  const int32_t* panels;  // which panels to compute
  int64_t panel_count;
  const scalar_t* zeros;  // stands for a row outside: as many on either side as a tap reads
  bool rows_alone;        // weights that are not finite: a zero would not hide them
  // Room for K: weights of inputs that are zero are not read. Null: of all of them. Not with
  // rows_alone. Of use for a single row, most of whose inputs may be zero.
  LiveInput<scalar_t>* live;
  int64_t live_count = 0;
};

enum class PointwiseOp : int32_t {
  kNeg,
  kAbs,
  kSign,
  kReciprocal,
  kSqrt,
  kRsqrt,
  kExp,
  kExpm1,
  kLog,
  kLog1p,
  kSin,
  kCos,
  kErf,
  kTanh,
  kSigmoid,
  kRelu,
  kSilu,
  kGelu,
  kGeluTanh,
  kFloor,
  kCeil,
  kRound,
  kTrunc,
  kNot,
  kAdd,
  kSub,
  kMul,
  kDiv,
  kPow,
  kRemainder,
  kFmod,
  kMaximum,
  kMinimum,
  kEq,
  kNe,
  kLt,
  kLe,
  kGt,
  kGe,
  kElu,
  kLeakyRelu,
  kWhere,
  kSoftplus,
  kGate,  // tanh(a) * sigmoid(b), found by the engine
};

// The operation of a name in pointwise.POINTWISE, or -1.
constexpr const char* kPointwiseNames[] = {
    "neg",        "abs",   "sign",      "reciprocal", "sqrt", "rsqrt",     "exp",     "expm1",
    "log",        "log1p", "sin",       "cos",        "erf",  "tanh",      "sigmoid", "relu",
    "silu",       "gelu",  "gelu_tanh", "floor",      "ceil", "round",     "trunc",   "not",
    "add",        "sub",   "mul",       "div",        "pow",  "remainder", "fmod",    "maximum",
    "minimum",    "eq",    "ne",        "lt",         "le",   "gt",        "ge",      "elu",
    "leaky_relu", "where", "softplus",
};

// Registers are numbered stretches of kPointwiseChunk numbers in `scratch`.
constexpr int64_t kPointwiseChunk = 512;

struct PointwiseStep {
  PointwiseOp op;
  int32_t to;
  int32_t args[3];
};

template <typename scalar_t>
struct PointwiseRead {
  const scalar_t* const* rows;  // per row the first feature; null: outside, reads `fill`
  int64_t step;
  scalar_t fill;
  int32_t to;  // register
};

template <typename scalar_t>
struct PointwiseConstant {
  scalar_t value;
  int32_t to;
};

// out[row][begin .. end - 1] from the same features of the reads.
template <typename scalar_t>
struct PointwiseCall {
  const PointwiseRead<scalar_t>* reads;
  int64_t read_count;
  const PointwiseConstant<scalar_t>* constants;
  int64_t constant_count;
  const PointwiseStep* steps;
  int64_t step_count;
  int32_t result;  // register that is stored
  int64_t rows;
  int64_t begin, end;
  scalar_t* const* out;  // per row the first feature
  scalar_t* scratch;
};

// Attention goes head by head, so many heads together: what their keys are lies together too.
constexpr int64_t kAttendHeads = 8;

// A product of a key and a query is the sum of so many chains of fused multiply-adds, where number
// d belongs to chain d % kAttendLanes, added as a tree.
constexpr int64_t kAttendLanes = 16;

// Part of a head's numbers: features offset .. offset + count - 1 of a read.
struct AttendPiece {
  int32_t read;
  int64_t offset;
  int64_t first;  // number of the head where it begins
  int64_t count;
};

// Where a read finds its first feature at consecutive positions.
template <typename scalar_t>
struct AttendPlace {
  const scalar_t* first;
  int64_t stride;  // from position to position
  int64_t step;    // from feature to feature; 0 also where a read is outside
};

// Some heads at consecutive positions.
template <typename scalar_t>
struct AttendStretch {
  const AttendPlace<scalar_t>* places;  // per read
  const AttendPiece* pieces;
  const int32_t* begins;  // of each head's pieces, and the end
  int64_t heads;          // at most kAttendHeads
  int64_t positions;
};

// scores[head][position] = sum of key * query. Writes whole vectors, also beyond the last.
template <typename scalar_t>
struct AttendKeys {
  AttendStretch<scalar_t> at;
  int64_t depth;
  const scalar_t* queries;  // [heads][query_stride], zero beyond the depth
  int64_t query_stride;     // a multiple of kAttendLanes
  scalar_t* scores;
  int64_t score_stride;
  scalar_t* key;  // room for query_stride
};

struct AttendRun {
  int64_t begin, end;
};

// Of one head: scores become exp(scale * score + bias - highest).
template <typename scalar_t>
struct AttendWeights {
  scalar_t* scores;  // of all seen positions together; room for a multiple of kAttendLanes
  int64_t seen;
  const AttendRun* runs;  // the seen positions, ascending
  int64_t run_count;
  const scalar_t* bias;  // of position 0
  int64_t bias_step;
  scalar_t scale;
};

// totals[head][w] += sum of weight * value, position by position.
template <typename scalar_t>
struct AttendValues {
  AttendStretch<scalar_t> at;
  const scalar_t* weights;
  int64_t weight_stride;
  scalar_t* totals;
  int64_t total_stride;
};

template <SimdLevel level, typename scalar_t>
void sampling_attend_scores(const AttendKeys<scalar_t>& call);

// Returns the sum of the weights.
template <SimdLevel level, typename scalar_t>
scalar_t sampling_attend_weights(const AttendWeights<scalar_t>& call);

template <SimdLevel level, typename scalar_t>
void sampling_attend_values(const AttendValues<scalar_t>& call);

template <SimdLevel level, typename scalar_t>
void sampling_gemm(GemmCall<scalar_t> call);

template <SimdLevel level, typename scalar_t>
void sampling_pointwise(const PointwiseCall<scalar_t>& call);

}  // namespace genfast::cpu
