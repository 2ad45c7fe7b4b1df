#include <ATen/Dispatch.h>
#include <ATen/Parallel.h>
#include <c10/core/CPUAllocator.h>
#include <torch/library.h>

#include <algorithm>

#include "csrc/masked_conv2d_epilogue.h"

namespace genfast {
namespace {

using at::Tensor;

constexpr const char* kOp = "masked_conv2d";
constexpr int64_t kGrain = 1 << 18;      // multiply-adds that make another thread worthwhile
constexpr int64_t kPackGrain = 1 << 14;  // weights
// A chunk of the weight gradient costs a pass over the weight, so it must hold many more pixels
// than that is worth; and more tasks than this cost memory without keeping more threads busy.
constexpr int64_t kChunkPixels = 1024;
constexpr int64_t kMostTasks = 64;
constexpr int64_t kMostCopied = 1 << 18;  // numbers of an image: half of a second level cache
constexpr int64_t kPartRows = 448;        // of patches; each part transposes the gradient again

int64_t grain(int64_t total, int64_t work_per_item) {
  return std::max<int64_t>(1, total / std::max<int64_t>(1, work_per_item));
}

int64_t ceil_div(int64_t a, int64_t b) {
  return a >= 0 ? (a + b - 1) / b : -(-a / b);
}

// Positions i in [0, count) with 0 <= step * i + offset < size.
void inside(int64_t size, int64_t step, int64_t offset, int64_t count, int64_t* begin,
            int64_t* end) {
  *begin = std::clamp<int64_t>(ceil_div(-offset, step), 0, count);
  *end = std::clamp<int64_t>(ceil_div(size - offset, step), *begin, count);
}

cpu::GridTap grid_tap(int64_t row, int64_t col, const cpu::Grid& grid, int64_t H, int64_t W) {
  cpu::GridTap tap{row, col, 0, 0, 0, 0};
  inside(H, grid.in_step_h, row, grid.rows, &tap.row_begin, &tap.row_end);
  inside(W, grid.in_step_w, col, grid.cols, &tap.col_begin, &tap.col_end);
  return tap;
}

// The grid of output pixels, and the taps on it in the order given.
cpu::Grid output_grid(const Conv2dShape& s, const std::vector<int64_t>& taps,
                      std::vector<cpu::GridTap>& storage) {
  cpu::Grid grid{nullptr, 0, s.H_out, s.W_out, s.stride_h, s.stride_w, 0, 0, 1, 1};
  for (const int64_t tap : taps) {
    const int64_t row = tap / s.kW * s.dilation_h - s.padding_h;
    const int64_t col = tap % s.kW * s.dilation_w - s.padding_w;
    storage.push_back(grid_tap(row, col, grid, s.H, s.W));
  }
  grid.taps = storage.data();
  grid.tap_count = static_cast<int64_t>(storage.size());
  return grid;
}

// The grid of input pixels (first_h + stride_h * i, first_w + stride_w * j), and those of the taps
// that meet it: pixel h meets tap kh in output row (h + padding - kh * dilation) / stride, where
// that is an integer.
cpu::Grid input_grid(const Conv2dShape& s, int64_t first_h, int64_t first_w,
                     const std::vector<int64_t>& taps, std::vector<int64_t>& met,
                     std::vector<cpu::GridTap>& storage) {
  cpu::Grid grid{nullptr,
                 0,
                 ceil_div(s.H - first_h, s.stride_h),
                 ceil_div(s.W - first_w, s.stride_w),
                 1,
                 1,
                 first_h,
                 first_w,
                 s.stride_h,
                 s.stride_w};
  for (const int64_t tap : taps) {
    const int64_t row = first_h + s.padding_h - tap / s.kW * s.dilation_h;
    const int64_t col = first_w + s.padding_w - tap % s.kW * s.dilation_w;
    if (row % s.stride_h != 0 || col % s.stride_w != 0) continue;
    met.push_back(tap);
    storage.push_back(grid_tap(row / s.stride_h, col / s.stride_w, grid, s.H_out, s.W_out));
  }
  grid.taps = storage.data();
  grid.tap_count = static_cast<int64_t>(storage.size());
  return grid;
}

template <cpu::SimdLevel level, typename scalar_t>
Tensor packed_weights(const Tensor& weight, const Tensor& mask, const std::vector<int64_t>& taps,
                      const Conv2dShape& s, bool transposed) {
  const int64_t C_out = s.C_out / s.groups;
  const int64_t C_in = s.C_in / s.groups;
  const int64_t pairs = s.groups * (transposed ? C_out : C_in);
  const auto tap_count = static_cast<int64_t>(taps.size());
  Tensor packed = at::empty({s.groups * C_out * C_in * tap_count}, weight.options());
  const cpu::PackWeights<scalar_t> params{weight.const_data_ptr<scalar_t>(),
                                          weight_mask<scalar_t>(mask),
                                          taps.data(),
                                          packed.mutable_data_ptr<scalar_t>(),
                                          tap_count,
                                          s.groups,
                                          C_out,
                                          C_in,
                                          s.kH,
                                          s.kW,
                                          transposed};
  const int64_t work = tap_count * (transposed ? C_in : C_out);
  at::parallel_for(0, pairs, grain(kPackGrain, work), [&](int64_t begin, int64_t end) {
    cpu::pack_weights<level>(params, begin, end);
  });
  return packed;
}

// Memory of one thread's own: torch's number of threads is no bound where the compiler brought
// another OpenMP library than torch's.
c10::DataPtr allocate(int64_t bytes) {
  return c10::GetCPUAllocator()->allocate(static_cast<size_t>(bytes));
}

template <cpu::SimdLevel level, typename scalar_t>
void correlate(const cpu::Correlation<scalar_t>& params, const cpu::Grid& grid) {
  constexpr int64_t unit = cpu::kUnitPixels<level, scalar_t>;
  const int64_t units = params.N * cpu::tiles(grid.rows * grid.cols, unit);
  const int64_t work = unit * params.groups * params.M * (params.K * grid.tap_count + 1);
  const int64_t scratch_size = cpu::correlate_scratch<level>(params);
  at::parallel_for(0, units, grain(kGrain, work), [&](int64_t begin, int64_t end) {
    const c10::DataPtr scratch = allocate(scratch_size * int64_t{sizeof(scalar_t)});
    cpu::correlate<level>(params, grid, static_cast<scalar_t*>(scratch.get()), begin, end);
  });
}

// Calls function(level, scalar_t{}) with the SIMD level of this call, which must not change under
// it.
template <typename Function>
void dispatch(at::ScalarType type, Function&& function) {
  AT_DISPATCH_FLOATING_TYPES(
      type, kOp, [&] { cpu::at_simd_level([&](auto level) { function(level, scalar_t{}); }); });
}

Tensor masked_conv2d_cpu(const Tensor& x, const Tensor& weight, const Tensor& mask,
                         const std::optional<Tensor>& bias, at::OptionalIntArrayRef taps,
                         at::IntArrayRef stride, at::IntArrayRef padding, at::IntArrayRef dilation,
                         int64_t groups) {
  if (at::isReducedFloatingType(x.scalar_type())) {
    check_conv2d_pair("x", x, "weight", weight);
    if (bias.has_value()) check_conv2d_bias(*bias, weight);
    const auto wide_bias = bias.has_value() ? std::optional(bias->to(at::kFloat)) : std::nullopt;
    return masked_conv2d_cpu(x.to(at::kFloat), weight.to(at::kFloat), mask, wide_bias, taps, stride,
                             padding, dilation, groups)
        .to(x.scalar_type());
  }
  const Conv2dOptions options{stride, padding, dilation, groups};
  const Conv2dShape shape = conv2d_shape(x.sizes(), weight.sizes(), options);
  Tensor out = at::empty(output_sizes(shape), x.options(), at::MemoryFormat::Contiguous);
  convolve_cpu(x, weight, mask, bias, taps, shape, /*rectified=*/false, &out, nullptr);
  return out;
}

Tensor masked_conv2d_grad_input_cpu(const Tensor& grad, const Tensor& weight, const Tensor& mask,
                                    at::OptionalIntArrayRef taps, at::IntArrayRef input_size,
                                    at::IntArrayRef stride, at::IntArrayRef padding,
                                    at::IntArrayRef dilation, int64_t groups) {
  return grad_input_cpu(grad, weight, mask, std::nullopt, taps, input_size,
                        {stride, padding, dilation, groups});
}

Tensor masked_conv2d_grad_weight_cpu(const Tensor& grad, const Tensor& x, const Tensor& mask,
                                     at::OptionalIntArrayRef taps, at::IntArrayRef kernel_size,
                                     at::IntArrayRef stride, at::IntArrayRef padding,
                                     at::IntArrayRef dilation, int64_t groups) {
  return grad_weight_cpu(grad, x, mask, /*rectified=*/false, taps, kernel_size,
                         {stride, padding, dilation, groups});
}

}  // namespace

void convolve_cpu(const Tensor& x, const Tensor& weight, const Tensor& mask,
                  const std::optional<Tensor>& bias, at::OptionalIntArrayRef taps,
                  const Conv2dShape& s, bool rectified, Tensor* out, const Epilogue* epilogue) {
  check_conv2d_pair("x", x, "weight", weight);
  if (bias.has_value()) check_conv2d_bias(*bias, weight);
  const Tensor full_mask = expand_mask(mask, weight.sizes(), weight.scalar_type(), x.device());
  const std::vector<int64_t> live = live_taps(taps, full_mask, s);
  if (s.N == 0 || s.H_out == 0 || s.W_out == 0) return;
  const Tensor x_dense = x.contiguous();
  const Tensor weight_dense = weight.contiguous();
  const Tensor bias_dense = bias.has_value() ? bias->contiguous() : Tensor();
  std::vector<cpu::GridTap> grid_taps;
  const cpu::Grid grid = output_grid(s, live, grid_taps);
  dispatch(x.scalar_type(), [&](auto level, auto zero) {
    using scalar_t = decltype(zero);
    const Tensor packed =
        packed_weights<level(), scalar_t>(weight_dense, full_mask, live, s, false);
    std::optional<ConvEpilogue<scalar_t>> after;
    scalar_t* sums = nullptr;
    if (epilogue == nullptr) {
      sums = out->mutable_data_ptr<scalar_t>();
    } else {
      after = epilogue->params<scalar_t>();
      const bool same = result_channels(after->activation, after->C) == after->C;
      sums = after->kept != nullptr ? after->kept : same ? after->out : nullptr;
    }
    correlate<level()>(
        cpu::Correlation<scalar_t>{
            x_dense.const_data_ptr<scalar_t>(), packed.const_data_ptr<scalar_t>(),
            bias.has_value() ? bias_dense.const_data_ptr<scalar_t>() : nullptr, sums, s.N, s.groups,
            s.C_in / s.groups, s.C_out / s.groups, s.H, s.W, s.H_out, s.W_out,
            after.has_value() ? &*after : nullptr, rectified},
        grid);
  });
}

Tensor grad_input_cpu(const Tensor& grad, const Tensor& weight, const Tensor& mask,
                      const std::optional<Tensor>& open, at::OptionalIntArrayRef taps,
                      at::IntArrayRef input_size, const Conv2dOptions& options) {
  check_conv2d_pair("grad", grad, "weight", weight);
  const Conv2dShape s = grad_input_shape(grad, weight.sizes(), input_size, options);
  if (at::isReducedFloatingType(grad.scalar_type())) {
    const auto wide_open = open.has_value() ? std::optional(open->to(at::kFloat)) : std::nullopt;
    return grad_input_cpu(grad.to(at::kFloat), weight.to(at::kFloat), mask, wide_open, taps,
                          input_size, options)
        .to(grad.scalar_type());
  }
  const Tensor full_mask = expand_mask(mask, weight.sizes(), weight.scalar_type(), grad.device());
  const std::vector<int64_t> live = live_taps(taps, full_mask, s);
  Tensor grad_x = at::empty(input_sizes(s), grad.options(), at::MemoryFormat::Contiguous);
  if (grad_x.numel() == 0) return grad_x;
  // With a stride the grids of pixels have steps: a pass of its own follows.
  const bool fused = open.has_value() && s.stride_h == 1 && s.stride_w == 1;
  const Tensor open_dense = open.has_value() ? open->contiguous() : Tensor();
  const Tensor grad_dense = grad.contiguous();
  const Tensor weight_dense = weight.contiguous();
  dispatch(grad.scalar_type(), [&](auto level, auto zero) {
    using scalar_t = decltype(zero);
    for (int64_t first_h = 0; first_h < std::min(s.stride_h, s.H); ++first_h) {
      for (int64_t first_w = 0; first_w < std::min(s.stride_w, s.W); ++first_w) {
        std::vector<int64_t> met;
        std::vector<cpu::GridTap> grid_taps;
        const cpu::Grid grid = input_grid(s, first_h, first_w, live, met, grid_taps);
        const Tensor packed =
            packed_weights<level(), scalar_t>(weight_dense, full_mask, met, s, true);
        correlate<level()>(
            cpu::Correlation<scalar_t>{
                grad_dense.const_data_ptr<scalar_t>(), packed.const_data_ptr<scalar_t>(), nullptr,
                grad_x.mutable_data_ptr<scalar_t>(), s.N, s.groups, s.C_out / s.groups,
                s.C_in / s.groups, s.H_out, s.W_out, s.H, s.W, nullptr, false,
                fused ? open_dense.const_data_ptr<scalar_t>() : nullptr},
            grid);
      }
    }
  });
  return open.has_value() && !fused ? at::threshold_backward(grad_x, open_dense, 0) : grad_x;
}

Tensor grad_weight_cpu(const Tensor& grad, const Tensor& x, const Tensor& mask, bool rectified,
                       at::OptionalIntArrayRef taps, at::IntArrayRef kernel_size,
                       const Conv2dOptions& options) {
  check_conv2d_pair("grad", grad, "x", x);
  const Conv2dShape s = grad_weight_shape(grad, x.sizes(), kernel_size, options);
  if (at::isReducedFloatingType(grad.scalar_type())) {
    return grad_weight_cpu(grad.to(at::kFloat), x.to(at::kFloat), mask, rectified, taps,
                           kernel_size, options)
        .to(grad.scalar_type());
  }
  const std::vector<int64_t> sizes = weight_sizes(s);
  const Tensor full_mask = expand_mask(mask, sizes, grad.scalar_type(), grad.device());
  const std::vector<int64_t> live = live_taps(taps, full_mask, s);
  Tensor grad_weight = at::empty(sizes, grad.options());
  if (grad.numel() == 0 || x.numel() == 0 || live.empty()) return grad_weight.zero_();
  const Tensor grad_dense = grad.contiguous();
  // Large images are rectified by a pass of its own: threads have copies of small ones.
  const bool copies = rectified && s.C_in / s.groups * s.H * s.W <= kMostCopied;
  const Tensor x_dense = rectified && !copies ? x.relu().contiguous() : x.contiguous();
  std::vector<cpu::GridTap> grid_taps;
  const cpu::Grid grid = output_grid(s, live, grid_taps);
  const int64_t C_in = s.C_in / s.groups;
  const int64_t C_out = s.C_out / s.groups;
  const int64_t pixels = s.H_out * s.W_out;
  const int64_t rows = grid.tap_count * C_in;
  dispatch(grad.scalar_type(), [&](auto level, auto zero) {
    using scalar_t = decltype(zero);
    constexpr int64_t tile = cpu::kChannelTile<level(), scalar_t>;
    const int64_t padded = cpu::tiles(C_out, tile) * tile;
    // Units of nearly equal size, whole rows where these are short.
    const int64_t whole = s.W_out <= cpu::kGradUnitPixels ? s.W_out : 1;
    const int64_t pieces = pixels / whole;
    const int64_t most = cpu::kGradUnitPixels / whole;
    const int64_t unit_pixels = ceil_div(pieces, ceil_div(pieces, most)) * whole;
    const int64_t units_per_image = ceil_div(pixels, unit_pixels);
    const int64_t parts = ceil_div(rows, kPartRows);
    const int64_t chunks = std::clamp<int64_t>(
        s.N * pixels / kChunkPixels, 1,
        std::min(s.N * units_per_image, ceil_div(kMostTasks, s.groups * parts)));
    const Tensor partial = at::empty({chunks * s.groups * rows * padded}, grad.options());
    const cpu::GradWeight<scalar_t> params{x_dense.const_data_ptr<scalar_t>(),
                                           grad_dense.const_data_ptr<scalar_t>(),
                                           weight_mask<scalar_t>(full_mask),
                                           live.data(),
                                           grid,
                                           partial.mutable_data_ptr<scalar_t>(),
                                           grad_weight.mutable_data_ptr<scalar_t>(),
                                           s.N,
                                           s.groups,
                                           C_out,
                                           C_in,
                                           s.H,
                                           s.W,
                                           s.kH,
                                           s.kW,
                                           unit_pixels,
                                           units_per_image,
                                           chunks,
                                           parts,
                                           copies};
    const int64_t scratch_size = cpu::grad_weight_scratch<level()>(params);
    const int64_t tasks = chunks * s.groups * parts;
    const int64_t work = s.N * pixels / chunks * (rows / parts + 1) * padded;
    at::parallel_for(0, tasks, grain(kGrain, work), [&](int64_t begin, int64_t end) {
      const c10::DataPtr scratch = allocate(scratch_size * int64_t{sizeof(scalar_t)});
      cpu::grad_weight_partial<level()>(params, static_cast<scalar_t*>(scratch.get()), begin, end);
    });
    at::parallel_for(
        0, s.groups * C_in, grain(kPackGrain, chunks * grid.tap_count * padded),
        [&](int64_t begin, int64_t end) { cpu::grad_weight_reduce<level()>(params, begin, end); });
  });
  return grad_weight;
}

TORCH_LIBRARY_IMPL(genfast, CPU, m) {
  m.impl("masked_conv2d", masked_conv2d_cpu);
  m.impl("_masked_conv2d_grad_input", masked_conv2d_grad_input_cpu);
  m.impl("_masked_conv2d_grad_weight", masked_conv2d_grad_weight_cpu);
}

}  // namespace genfast
