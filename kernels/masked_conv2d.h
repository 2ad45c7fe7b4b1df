// Two-dimensional convolution over the live taps of a masked kernel, and its two gradients.
//
// Coordinates: output pixel (n, h_out, w_out), kernel position (kh, kw), input pixel
//   h = h_out * stride_h - padding_h + kh * dilation_h,   w likewise;
// a pixel outside the image counts as zero. A tap is the number kh * kW + kw of a kernel position;
// it is live when the mask is nonzero there for some pair of channels. Nothing is read for a dead
// tap.
//   out[n, co, h_out, w_out]  = bias[co] + sum over taps, ci of x[n, ci, h, w] * masked[co, ci,
//   tap] grad_x[n, ci, h, w]       = sum over taps, co of grad[n, co, h_out, w_out] * masked[co,
//   ci, tap] grad_weight[co, ci, tap]  = mask[co, ci, tap] * sum over n, h_out, w_out of grad * x
// where ci and co run within one group.
#pragma once

#include <cstdint>

#include "kernels/cpu/simd.h"
#include "kernels/macros.h"
#include "kernels/masked_conv2d_epilogue.h"

namespace genfast {

struct Conv2dShape {
  int64_t N, C_in, C_out, groups;
  int64_t H, W, H_out, W_out, kH, kW;
  int64_t stride_h, stride_w;
  int64_t padding_h, padding_w;  // above and to the left; negative: cropped there
  int64_t dilation_h, dilation_w;
};

// A mask of the weight's shape with strides of its own (0 where it was broadcast). One pointer is
// null.
template <typename scalar_t>
struct WeightMask {
  const bool* flags;
  const scalar_t* factors;
  int64_t stride_co, stride_ci, stride_kh, stride_kw;  // elements
};

template <typename scalar_t>
GENFAST_INLINE int64_t mask_index(const WeightMask<scalar_t>& mask, int64_t co, int64_t ci,
                                  int64_t kh, int64_t kw) {
  return co * mask.stride_co + ci * mask.stride_ci + kh * mask.stride_kh + kw * mask.stride_kw;
}

// value * mask, and exactly zero under a zero of the mask whatever the value is.
template <typename scalar_t, typename acc_t>
GENFAST_INLINE acc_t apply_mask(const WeightMask<scalar_t>& mask, int64_t index, acc_t value) {
  if (mask.flags != nullptr) return mask.flags[index] ? value : acc_t(0);
  const acc_t factor = static_cast<acc_t>(mask.factors[index]);
  return factor == acc_t(0) ? acc_t(0) : value * factor;
}

}  // namespace genfast

#if !defined(__CUDACC__)
namespace genfast::cpu {

// On the CPU all three are products of matrices over patches. The patch matrix of a grid of pixels
// has a row for each pair (tap, k) of a live tap and a channel, and a column for each grid pixel
// (i, j), counted row by row:
//   patch[tap * K + k, (i, j)] = in[n, k, in_step_h * i + tap.row, in_step_w * j + tap.col],
// zero outside the image. It is never made as a whole: a thread packs a piece that its caches hold.
//   output:    out[m, pixel] = bias[m] + sum over rows of packed[row, m] * patch[row, pixel]
//   gradient of the input: the same from grad and the transposed weight, on stride_h * stride_w
//              grids, since input pixels of equal remainder meet the same taps
//   gradient of the weight: grad_weight[row, m] = sum over pixels of patch[row, pixel] * grad[m,
//              pixel]
// `k` are the channels summed over, `m` the channels produced, both within one group.
struct GridTap {
  int64_t row, col;            // offset of the input pixel
  int64_t row_begin, row_end;  // grid rows whose input row lies inside the image
  int64_t col_begin, col_end;
};

struct Grid {
  const GridTap* taps;
  int64_t tap_count;
  int64_t rows, cols;
  int64_t in_step_h, in_step_w;
  int64_t first_h, first_w, step_h, step_w;  // pixels of the produced image
};

template <typename scalar_t>
struct Correlation {
  const scalar_t* in;      // [N, groups * K, H_in, W_in]
  const scalar_t* packed;  // of this grid's taps, as PackWeights leaves it
  const scalar_t* bias;    // [groups * M], or null: zero
  scalar_t* out;           // [N, groups * M, H_out, W_out]
  int64_t N, groups, K, M;
  int64_t H_in, W_in, H_out, W_out;
  // What follows while the sums are in cache, or null; on grids with step 1 only. `out` is then
  // memory of its results for the sums to grow in, or null.
  const ConvEpilogue<scalar_t>* epilogue = nullptr;
  // Whether `in` counts as max(0, in), as behind a ReLU.
  bool rectified = false;
  // Of the shape of `out`, on grids with step 1 only, or null: where it is not positive sums become
  // zero, as in the backward of a ReLU.
  const scalar_t* open = nullptr;
};

// weight * mask of the given taps, in panels of produced channels as wide as a register tile is
// high: [groups, panels, tap * K + k, channels of the panel].
template <typename scalar_t>
struct PackWeights {
  const scalar_t* weight;  // [groups * C_out, C_in, kH * kW], contiguous, C per group
  WeightMask<scalar_t> mask;
  const int64_t* taps;  // kernel positions
  scalar_t* packed;     // groups * C_out * C_in * tap_count elements
  int64_t tap_count, groups, C_out, C_in, kH, kW;
  bool transposed;  // false: K = C_in, M = C_out; true: K = C_out, M = C_in
};

// The gradient of the weight is summed in chunks of pixels that follow from the shape alone, so
// that no bit depends on the number of threads. A unit is a block of grid pixels of one image.
template <typename scalar_t>
struct GradWeight {
  const scalar_t* x;     // [N, groups * C_in, H, W]
  const scalar_t* grad;  // [N, groups * C_out, H_out, W_out]
  WeightMask<scalar_t> mask;
  const int64_t* positions;  // live kernel positions
  Grid grid;                 // the output pixels, with the same taps in the same order
  scalar_t* partial;         // [chunks, groups, taps * C_in, C_out rounded up to a tile]
  scalar_t* grad_weight;     // [groups * C_out, C_in, kH * kW], contiguous
  int64_t N, groups, C_out, C_in, H, W, kH, kW;
  int64_t unit_pixels, units_per_image, chunks;
  int64_t parts;           // of the patch rows; tasks of one chunk
  bool rectified = false;  // `x` counts as max(0, x)
};

constexpr int64_t simd_bytes(SimdLevel level) {
  return level == SimdLevel::kAvx512 ? 64 : level == SimdLevel::kAvx2 ? 32 : 16;
}

// Lanes of a register tile, pixels or channels: two vector registers.
template <SimdLevel level, typename scalar_t>
constexpr int64_t kChannelTile = 2 * simd_bytes(level) / static_cast<int64_t>(sizeof(scalar_t));

constexpr int64_t tiles(int64_t channels, int64_t tile) {
  return (channels + tile - 1) / tile;
}

// Grid pixels that a unit of `correlate` has at most: four tiles of patches.
template <SimdLevel level, typename scalar_t>
constexpr int64_t kUnitPixels = 4 * kChannelTile<level, scalar_t>;

// Grid pixels that a unit of the weight's gradient has at most.
constexpr int64_t kGradUnitPixels = 256;

// Pairs (group, channel summed over) in [begin, end) of groups * K.
template <SimdLevel level, typename scalar_t>
void pack_weights(const PackWeights<scalar_t>& params, int64_t begin, int64_t end);

// Elements of scratch memory that one thread of `correlate` needs.
template <SimdLevel level, typename scalar_t>
int64_t correlate_scratch(const Correlation<scalar_t>& params);

// Units (image, kUnitPixels grid pixels) in [begin, end).
template <SimdLevel level, typename scalar_t>
void correlate(const Correlation<scalar_t>& params, const Grid& grid, scalar_t* scratch,
               int64_t begin, int64_t end);

// Elements of scratch memory that one thread of grad_weight_partial needs.
template <SimdLevel level, typename scalar_t>
int64_t grad_weight_scratch(const GradWeight<scalar_t>& params);

// Tasks (chunk, group, part) in [begin, end) of chunks * groups * parts.
template <SimdLevel level, typename scalar_t>
void grad_weight_partial(const GradWeight<scalar_t>& params, scalar_t* scratch, int64_t begin,
                         int64_t end);

// Sums the chunks: pairs (group, ci) in [begin, end) of groups * C_in.
template <SimdLevel level, typename scalar_t>
void grad_weight_reduce(const GradWeight<scalar_t>& params, int64_t begin, int64_t end);

}  // namespace genfast::cpu
#endif

namespace genfast::cuda {

// Live taps travel to the kernel by value: no copy to the device, and a CUDA graph replays them.
constexpr int kMostTaps = 512;
struct LiveTaps {
  int32_t count;
  int32_t position[kMostTaps];
};

template <typename scalar_t>
struct Conv2dForward {
  Conv2dShape shape;
  const scalar_t* x;       // [N, C_in, H, W]
  const scalar_t* weight;  // [C_out, C_in / groups, kH, kW]
  WeightMask<scalar_t> mask;
  const scalar_t* bias;  // [C_out], or null: zero
  scalar_t* out;         // [N, C_out, H_out, W_out]
};

template <typename scalar_t>
struct Conv2dGradInput {
  Conv2dShape shape;
  const scalar_t* grad;    // [N, C_out, H_out, W_out]
  const scalar_t* weight;  // [C_out, C_in / groups, kH, kW]
  WeightMask<scalar_t> mask;
  scalar_t* grad_x;  // [N, C_in, H, W]
};

// The sum over pixels is cut into `splits` parts, a number that follows from the shape alone, and
// these are added in order: the same bits on every device.
template <typename scalar_t, typename acc_t>
struct Conv2dGradWeight {
  Conv2dShape shape;
  const scalar_t* grad;  // [N, C_out, H_out, W_out]
  const scalar_t* x;     // [N, C_in, H, W]
  WeightMask<scalar_t> mask;
  acc_t* partial;         // [splits, groups, taps * C_in / groups, C_out / groups]
  scalar_t* grad_weight;  // [C_out, C_in / groups, kH, kW], zero where no tap is live
  int64_t splits;
};

// float and double, and the half types with acc_t = float.
template <typename scalar_t>
void masked_conv2d_forward(const Conv2dForward<scalar_t>& params, const LiveTaps& taps,
                           void* stream);
template <typename scalar_t>
void masked_conv2d_grad_input(const Conv2dGradInput<scalar_t>& params, const LiveTaps& taps,
                              void* stream);
template <typename scalar_t, typename acc_t>
void masked_conv2d_grad_weight(const Conv2dGradWeight<scalar_t, acc_t>& params,
                               const LiveTaps& taps, void* stream);

}  // namespace genfast::cuda
