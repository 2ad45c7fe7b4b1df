#include "kernels/masked_conv2d.h"

#include "kernels/cuda/half.cuh"
#include "kernels/cuda/launch.cuh"

namespace genfast::cuda {
namespace {

// All three are matrix products whose factors are gathered on the fly (implicit GEMM):
//   result[row, column] = sum over depth of left(row, depth) * right(depth, column)
//                 row               depth            column
//   forward       output pixel      tap, ci          co
//   grad_input    input pixel       tap, co          ci
//   grad_weight   tap, ci           output pixel     co
// once per group (and per split of the depth). A thread block computes a square of kTile results,
// a thread kPerThread x kPerThread of them, strided by kSide so that neighbouring threads touch
// neighbouring rows.
constexpr int kTile = 64;
constexpr int kDepth = 16;
constexpr int kSide = 16;
constexpr int kThreads = kSide * kSide;
constexpr int kPerThread = kTile / kSide;

struct Pixel {
  int64_t n, h, w;  // n < 0: no pixel
};

__device__ inline Pixel pixel_at(int64_t index, int64_t N, int64_t H, int64_t W) {
  if (index >= N * H * W) return {-1, 0, 0};
  const int64_t line = index / W;
  return {line / H, line % H, index - line * W};
}

// A kernel position and a channel within the group.
struct TapChannel {
  int64_t kh, kw, channel;  // channel < 0: beyond the last
};

__device__ inline TapChannel tap_channel(int64_t index, int64_t channels, const LiveTaps& taps,
                                         int64_t kW) {
  const int64_t tap = index / channels;
  if (tap >= taps.count) return {0, 0, -1};
  const int64_t position = taps.position[tap];
  return {position / kW, position % kW, index - tap * channels};
}

template <typename scalar_t>
__device__ acc_type<scalar_t> masked_weight(const scalar_t* weight,
                                            const WeightMask<scalar_t>& mask, const Conv2dShape& s,
                                            int64_t co, int64_t ci, int64_t kh, int64_t kw) {
  using acc_t = acc_type<scalar_t>;
  const int64_t C_in = s.C_in / s.groups;
  const acc_t value = load<acc_t>(weight[((co * C_in + ci) * s.kH + kh) * s.kW + kw]);
  return apply_mask(mask, mask_index(mask, co, ci, kh, kw), value);
}

template <typename scalar_t_>
struct ForwardProblem {
  using scalar_t = scalar_t_;
  using acc_t = acc_type<scalar_t>;
  using Row = Pixel;
  using Depth = TapChannel;
  static constexpr bool kDepthIsContiguous = false;
  Conv2dForward<scalar_t> p;
  LiveTaps taps;

  __device__ int64_t batches() const { return p.shape.groups; }
  __device__ int64_t rows() const { return p.shape.N * p.shape.H_out * p.shape.W_out; }
  __device__ int64_t columns() const { return p.shape.C_out / p.shape.groups; }
  __device__ int64_t depth_begin(int64_t) const { return 0; }
  __device__ int64_t depth_end(int64_t) const {
    return taps.count * (p.shape.C_in / p.shape.groups);
  }
  __device__ Row row(int64_t, int64_t index) const {
    return pixel_at(index, p.shape.N, p.shape.H_out, p.shape.W_out);
  }
  __device__ Depth depth(int64_t index) const {
    return tap_channel(index, p.shape.C_in / p.shape.groups, taps, p.shape.kW);
  }
  __device__ acc_t left(int64_t group, const Row& row, const Depth& k) const {
    const Conv2dShape& s = p.shape;
    const int64_t h = row.h * s.stride_h - s.padding_h + k.kh * s.dilation_h;
    const int64_t w = row.w * s.stride_w - s.padding_w + k.kw * s.dilation_w;
    if (row.n < 0 || k.channel < 0 || h < 0 || h >= s.H || w < 0 || w >= s.W) return 0;
    const int64_t c = group * (s.C_in / s.groups) + k.channel;
    return load<acc_t>(p.x[((row.n * s.C_in + c) * s.H + h) * s.W + w]);
  }
  __device__ acc_t right(int64_t group, const Depth& k, int64_t column) const {
    if (k.channel < 0 || column >= columns()) return 0;
    return masked_weight(p.weight, p.mask, p.shape, group * columns() + column, k.channel, k.kh,
                         k.kw);
  }
  __device__ void write(int64_t group, int64_t index, int64_t column, acc_t value) const {
    const Conv2dShape& s = p.shape;
    const int64_t co = group * columns() + column;
    const int64_t plane = s.H_out * s.W_out;
    if (p.bias != nullptr) value += load<acc_t>(p.bias[co]);
    p.out[(index / plane * s.C_out + co) * plane + index % plane] = store<scalar_t>(value);
  }
};

template <typename scalar_t_>
struct GradInputProblem {
  using scalar_t = scalar_t_;
  using acc_t = acc_type<scalar_t>;
  using Row = Pixel;
  using Depth = TapChannel;
  static constexpr bool kDepthIsContiguous = false;
  Conv2dGradInput<scalar_t> p;
  LiveTaps taps;

  __device__ int64_t batches() const { return p.shape.groups; }
  __device__ int64_t rows() const { return p.shape.N * p.shape.H * p.shape.W; }
  __device__ int64_t columns() const { return p.shape.C_in / p.shape.groups; }
  __device__ int64_t depth_begin(int64_t) const { return 0; }
  __device__ int64_t depth_end(int64_t) const {
    return taps.count * (p.shape.C_out / p.shape.groups);
  }
  __device__ Row row(int64_t, int64_t index) const {
    return pixel_at(index, p.shape.N, p.shape.H, p.shape.W);
  }
  __device__ Depth depth(int64_t index) const {
    return tap_channel(index, p.shape.C_out / p.shape.groups, taps, p.shape.kW);
  }
  __device__ acc_t left(int64_t group, const Row& row, const Depth& k) const {
    const Conv2dShape& s = p.shape;
    // The output pixel that this tap takes from input pixel (h, w), if there is one.
    const int64_t h = row.h + s.padding_h - k.kh * s.dilation_h;
    const int64_t w = row.w + s.padding_w - k.kw * s.dilation_w;
    if (row.n < 0 || k.channel < 0 || h < 0 || w < 0) return 0;
    if (h % s.stride_h != 0 || w % s.stride_w != 0) return 0;
    const int64_t h_out = h / s.stride_h;
    const int64_t w_out = w / s.stride_w;
    if (h_out >= s.H_out || w_out >= s.W_out) return 0;
    const int64_t c = group * (s.C_out / s.groups) + k.channel;
    return load<acc_t>(p.grad[((row.n * s.C_out + c) * s.H_out + h_out) * s.W_out + w_out]);
  }
  __device__ acc_t right(int64_t group, const Depth& k, int64_t column) const {
    if (k.channel < 0 || column >= columns()) return 0;
    const int64_t co = group * (p.shape.C_out / p.shape.groups) + k.channel;
    return masked_weight(p.weight, p.mask, p.shape, co, column, k.kh, k.kw);
  }
  __device__ void write(int64_t group, int64_t index, int64_t column, acc_t value) const {
    const Conv2dShape& s = p.shape;
    const int64_t plane = s.H * s.W;
    const int64_t ci = group * columns() + column;
    p.grad_x[(index / plane * s.C_in + ci) * plane + index % plane] = store<scalar_t>(value);
  }
};

// A batch is a split of one group: batch = split * groups + group.
template <typename scalar_t_>
struct GradWeightProblem {
  using scalar_t = scalar_t_;
  using acc_t = acc_type<scalar_t>;
  using Row = TapChannel;
  using Depth = Pixel;
  static constexpr bool kDepthIsContiguous = true;
  Conv2dGradWeight<scalar_t, acc_t> p;
  LiveTaps taps;

  __device__ int64_t batches() const { return p.shape.groups * p.splits; }
  __device__ int64_t rows() const { return taps.count * (p.shape.C_in / p.shape.groups); }
  __device__ int64_t columns() const { return p.shape.C_out / p.shape.groups; }
  __device__ int64_t pixels() const { return p.shape.N * p.shape.H_out * p.shape.W_out; }
  __device__ int64_t depth_begin(int64_t batch) const {
    return batch / p.shape.groups * pixels() / p.splits;
  }
  __device__ int64_t depth_end(int64_t batch) const {
    return (batch / p.shape.groups + 1) * pixels() / p.splits;
  }
  __device__ Row row(int64_t, int64_t index) const {
    return tap_channel(index, p.shape.C_in / p.shape.groups, taps, p.shape.kW);
  }
  __device__ Depth depth(int64_t index) const {
    return pixel_at(index, p.shape.N, p.shape.H_out, p.shape.W_out);
  }
  __device__ acc_t left(int64_t batch, const Row& row, const Depth& k) const {
    const Conv2dShape& s = p.shape;
    const int64_t h = k.h * s.stride_h - s.padding_h + row.kh * s.dilation_h;
    const int64_t w = k.w * s.stride_w - s.padding_w + row.kw * s.dilation_w;
    if (k.n < 0 || row.channel < 0 || h < 0 || h >= s.H || w < 0 || w >= s.W) return 0;
    const int64_t c = batch % s.groups * (s.C_in / s.groups) + row.channel;
    return load<acc_t>(p.x[((k.n * s.C_in + c) * s.H + h) * s.W + w]);
  }
  __device__ acc_t right(int64_t batch, const Depth& k, int64_t column) const {
    const Conv2dShape& s = p.shape;
    if (k.n < 0 || column >= columns()) return 0;
    const int64_t c = batch % s.groups * columns() + column;
    return load<acc_t>(p.grad[((k.n * s.C_out + c) * s.H_out + k.h) * s.W_out + k.w]);
  }
  __device__ void write(int64_t batch, int64_t index, int64_t column, acc_t value) const {
    p.partial[(batch * rows() + index) * columns() + column] = value;
  }
};

// Neighbouring threads load along the axis that is contiguous in memory: each thread then holds
// kRows rows and kDepths depths and loads every pair of them.
template <typename Problem>
__global__ void __launch_bounds__(kThreads)
    product_kernel(const __grid_constant__ Problem problem) {
  using acc_t = typename Problem::acc_t;
  constexpr int kRows = Problem::kDepthIsContiguous ? kTile * kDepth / kThreads : 1;
  constexpr int kDepths = Problem::kDepthIsContiguous ? 1 : kTile * kDepth / kThreads;
  constexpr int kRowStep = kTile / kRows;
  constexpr int kDepthStep = kDepth / kDepths;
  // One more column than needed, so that a column of the tile spreads over the memory banks.
  __shared__ acc_t left[kDepth][kTile + 1];
  __shared__ acc_t right[kDepth][kTile + 1];

  const int thread = threadIdx.x;
  const int load_row = Problem::kDepthIsContiguous ? thread / kDepth : thread % kTile;
  const int load_depth = Problem::kDepthIsContiguous ? thread % kDepth : thread / kTile;
  const int my_row = thread % kSide;
  const int my_column = thread / kSide;

  const int64_t row_tiles = (problem.rows() + kTile - 1) / kTile;
  const int64_t column_tiles = (problem.columns() + kTile - 1) / kTile;
  const int64_t tiles = problem.batches() * row_tiles * column_tiles;
  for (int64_t tile = blockIdx.x; tile < tiles; tile += gridDim.x) {
    const int64_t batch = tile / (row_tiles * column_tiles);
    const int64_t row0 = tile / column_tiles % row_tiles * kTile;
    const int64_t column0 = tile % column_tiles * kTile;
    const int64_t depth_end = problem.depth_end(batch);
    typename Problem::Row row[kRows];
    for (int r = 0; r < kRows; ++r) {
      row[r] = problem.row(batch, row0 + load_row + r * kRowStep);
    }
    acc_t sum[kPerThread][kPerThread] = {};
    for (int64_t k0 = problem.depth_begin(batch); k0 < depth_end; k0 += kDepth) {
      for (int d = 0; d < kDepths; ++d) {
        const int k = load_depth + d * kDepthStep;
        const bool inside = k0 + k < depth_end;
        const typename Problem::Depth depth = problem.depth(k0 + k);
        for (int r = 0; r < kRows; ++r) {
          const int m = load_row + r * kRowStep;
          left[k][m] = inside ? problem.left(batch, row[r], depth) : acc_t(0);
          right[k][m] = inside ? problem.right(batch, depth, column0 + m) : acc_t(0);
        }
      }
      __syncthreads();
      for (int k = 0; k < kDepth; ++k) {
        acc_t a[kPerThread], b[kPerThread];
        for (int i = 0; i < kPerThread; ++i) {
          a[i] = left[k][my_row + i * kSide];
          b[i] = right[k][my_column + i * kSide];
        }
        for (int i = 0; i < kPerThread; ++i) {
          for (int j = 0; j < kPerThread; ++j) sum[i][j] += a[i] * b[j];
        }
      }
      __syncthreads();
    }
    for (int i = 0; i < kPerThread; ++i) {
      for (int j = 0; j < kPerThread; ++j) {
        const int64_t index = row0 + my_row + i * kSide;
        const int64_t column = column0 + my_column + j * kSide;
        if (index < problem.rows() && column < problem.columns()) {
          problem.write(batch, index, column, sum[i][j]);
        }
      }
    }
  }
}

// One thread per weight of a live tap: the splits are added in order, then masked.
template <typename scalar_t>
__global__ void __launch_bounds__(kThreads)
    reduce_kernel(const __grid_constant__ GradWeightProblem<scalar_t> problem) {
  using acc_t = acc_type<scalar_t>;
  const auto& p = problem.p;
  const Conv2dShape& s = p.shape;
  const int64_t C_in = s.C_in / s.groups;
  const int64_t rows = problem.rows();
  const int64_t columns = problem.columns();
  const int64_t weights = s.groups * rows * columns;
  const int64_t step = int64_t{gridDim.x} * kThreads;
  for (int64_t i = int64_t{blockIdx.x} * kThreads + threadIdx.x; i < weights; i += step) {
    acc_t sum = 0;
    for (int64_t split = 0; split < p.splits; ++split) sum += p.partial[split * weights + i];
    const int64_t co = i / (rows * columns) * columns + i % columns;
    const TapChannel at = problem.row(0, i / columns % rows);
    const int64_t index = mask_index(p.mask, co, at.channel, at.kh, at.kw);
    p.grad_weight[((co * C_in + at.channel) * s.kH + at.kh) * s.kW + at.kw] =
        store<scalar_t>(apply_mask(p.mask, index, sum));
  }
}

template <typename Problem>
void launch_product(const Problem& problem, int64_t batches, int64_t rows, int64_t columns,
                    void* stream) {
  const int64_t tiles = batches * ((rows + kTile - 1) / kTile) * ((columns + kTile - 1) / kTile);
  if (tiles == 0) return;
  product_kernel<<<grid_size(tiles, 1), kThreads, 0, as_stream(stream)>>>(problem);
  check_launch("masked_conv2d product_kernel");
}

}  // namespace

template <typename scalar_t>
void masked_conv2d_forward(const Conv2dForward<scalar_t>& params, const LiveTaps& taps,
                           void* stream) {
  const Conv2dShape& s = params.shape;
  launch_product(ForwardProblem<scalar_t>{params, taps}, s.groups, s.N * s.H_out * s.W_out,
                 s.C_out / s.groups, stream);
}

template <typename scalar_t>
void masked_conv2d_grad_input(const Conv2dGradInput<scalar_t>& params, const LiveTaps& taps,
                              void* stream) {
  const Conv2dShape& s = params.shape;
  launch_product(GradInputProblem<scalar_t>{params, taps}, s.groups, s.N * s.H * s.W,
                 s.C_in / s.groups, stream);
}

template <typename scalar_t, typename acc_t>
void masked_conv2d_grad_weight(const Conv2dGradWeight<scalar_t, acc_t>& params,
                               const LiveTaps& taps, void* stream) {
  const Conv2dShape& s = params.shape;
  const GradWeightProblem<scalar_t> problem{params, taps};
  const int64_t rows = taps.count * (s.C_in / s.groups);
  const int64_t columns = s.C_out / s.groups;
  if (rows == 0) return;
  launch_product(problem, s.groups * params.splits, rows, columns, stream);
  reduce_kernel<<<grid_size(s.groups * rows * columns, kThreads), kThreads, 0, as_stream(stream)>>>(
      problem);
  check_launch("masked_conv2d reduce_kernel");
}

#define GENFAST_INSTANTIATE(scalar_t)                                                            \
  template void masked_conv2d_forward(const Conv2dForward<scalar_t>&, const LiveTaps&, void*);   \
  template void masked_conv2d_grad_input(const Conv2dGradInput<scalar_t>&, const LiveTaps&,      \
                                         void*);                                                 \
  template void masked_conv2d_grad_weight(const Conv2dGradWeight<scalar_t, acc_type<scalar_t>>&, \
                                          const LiveTaps&, void*);
GENFAST_INSTANTIATE(float)
GENFAST_INSTANTIATE(double)
GENFAST_INSTANTIATE(__half)
GENFAST_INSTANTIATE(__nv_bfloat16)
#undef GENFAST_INSTANTIATE

}  // namespace genfast::cuda
