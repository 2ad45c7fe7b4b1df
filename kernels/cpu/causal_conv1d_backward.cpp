#include "kernels/cpu/causal_conv1d_tile.h"
#include "kernels/cpu/denormals.h"

namespace genfast::cpu {
namespace {

// What a thread needs for a tile. Rows and columns that transposition adds stay zero.
template <typename scalar_t>
struct BackwardBuffers {
  scalar_t* x;          // [columns(K)] rows of taps, then zeros
  scalar_t* z;          // [columns(G)] rows, likewise
  scalar_t* grad;       // [heads] rows of grad_out, then grad_skip
  scalar_t* grad_h;     // [2 G] rows
  scalar_t* x_columns;  // x transposed: [kCausalConv1dTile] rows of columns(K)
  scalar_t* z_columns;  // z transposed: [kCausalConv1dTile] rows of columns(G)
  int64_t x_width, z_width;

  BackwardBuffers(const CausalConv1dShape& shape, scalar_t* scratch)
      : x_width(causal_conv1d_columns(shape.K())), z_width(causal_conv1d_columns(shape.G)) {
    x = scratch;
    z = x + x_width * kBufferStep;
    grad = z + z_width * kBufferStep;
    grad_h = grad + shape.heads() * kBufferStep;
    x_columns = grad_h + 2 * shape.G * kBufferStep;
    z_columns = x_columns + kCausalConv1dTile * x_step();
    for (scalar_t* to = x; to < grad; ++to) *to = 0;
  }

  // An odd number of cache lines for float, as for kBufferStep.
  int64_t x_step() const { return x_width + 16; }
  int64_t z_step() const { return z_width + 16; }
};

// sums[row, column] += the sum over the tile of rows[row, t] * columns[t, column].
template <typename scalar_t>
void add_products(const scalar_t* rows, int64_t count, const scalar_t* columns, int64_t step,
                  int64_t width, const TimeTile& tile, scalar_t* sums) {
  const Panels panels = Panels::of(count, kTileRows);
  for (int64_t c = 0; c < width; c += kTileColumns<scalar_t>) {  // which stay in the first cache
    for (int64_t p = 0; p < panels.count; ++p) {
      const int64_t first = panels.first(p);
      multiply_rows<scalar_t, kBufferStep>(panels.rows(p))(rows + first * kBufferStep, columns + c,
                                                           step, tile.width,
                                                           sums + first * width + c, width);
    }
  }
}

template <typename scalar_t>
scalar_t sum_of_row(const scalar_t* row, int64_t width) {
  Vector<scalar_t> sum{};
  for (int64_t t = 0; t < width; t += kLanes<scalar_t>) sum += load(row + t);
  double total = 0;
  for (int lane = 0; lane < kLanes<scalar_t>; ++lane) total += static_cast<double>(sum[lane]);
  return static_cast<scalar_t>(total);
}

template <typename scalar_t>
void backward_tile(const CausalConv1dInputs<scalar_t>& inputs,
                   const CausalConv1dPacked<scalar_t>& packed,
                   const CausalConv1dGradients<scalar_t>& gradients,
                   const BackwardBuffers<scalar_t>& buffers, const TimeTile& tile) {
  constexpr int64_t columns = kTileColumns<scalar_t>;
  const CausalConv1dShape& shape = inputs.shape;
  const int64_t heads = shape.heads();
  const int64_t residual_rows = heads - shape.S;
  read_taps(inputs, tile, buffers.x);
  if (shape.residual) {
    read_rows(gradients.grad_out + tile.n * shape.R * shape.T, shape.R, shape.T, tile.start, tile,
              buffers.grad);
  }
  read_rows(gradients.grad_skip + tile.n * shape.S * shape.T, shape.S, shape.T, tile.start, tile,
            buffers.grad + residual_rows * kBufferStep);

  alignas(64) scalar_t grad_z[kTilePairs * columns];
  scalar_t* grad_a = buffers.grad_h;
  scalar_t* grad_b = buffers.grad_h + shape.G * kBufferStep;
  for_gates(
      inputs, packed.gates, tile, buffers.x,
      [&](int64_t first, int64_t pairs, int64_t t) {
        multiply_packed<scalar_t>(pairs)(packed.heads_back + first * heads, buffers.grad + t,
                                         kBufferStep, heads, grad_z, columns);
      },
      [&](int64_t g, int64_t i, int64_t v, int64_t t, Vector<scalar_t> a, Vector<scalar_t> b) {
        const auto point = gate_point<scalar_t>(a, b, gate_exponentials<scalar_t>(a, b));
        const Vector<scalar_t> of_z = load(grad_z + i * columns + v);
        const int64_t at = g * kBufferStep + t;
        store(buffers.z + at, point.value);
        store(grad_a + at, of_z * point.slope_a);
        store(grad_b + at, of_z * point.slope_b);
      });
  for (int64_t c = 0; c < 2 * shape.G; ++c) {
    scalar_t* row = buffers.grad_h + c * kBufferStep;
    std::memcpy(gradients.grad_h + (tile.n * 2 * shape.G + c) * shape.T + tile.start, row,
                static_cast<size_t>(tile.count) * sizeof(scalar_t));
    for (int64_t t = tile.count; t < tile.width; ++t) row[t] = 0;
  }
  for (int64_t g = 0; g < shape.G; ++g) {
    for (int64_t t = tile.count; t < tile.width; ++t) buffers.z[g * kBufferStep + t] = 0;
  }
}

}  // namespace

template <SimdLevel level, typename scalar_t>
void causal_conv1d_backward(const CausalConv1dInputs<scalar_t>& inputs,
                            const CausalConv1dPacked<scalar_t>& packed,
                            const CausalConv1dGradients<scalar_t>& gradients, scalar_t* scratch,
                            int64_t begin, int64_t end) {
  [[maybe_unused]] const DenormalsAreZero fast;
  const CausalConv1dShape& shape = inputs.shape;
  const int64_t tiles = causal_conv1d_tiles(shape);
  const int64_t gates = 2 * shape.G, heads = shape.heads();
  const BackwardBuffers<scalar_t> buffers(shape, scratch);
  for (int64_t chunk = begin; chunk < end; ++chunk) {
    scalar_t* weight_sums = gradients.weight_sums + chunk * gates * buffers.x_width;
    scalar_t* head_sums = gradients.head_sums + chunk * heads * buffers.z_width;
    for (int64_t i = 0; i < gates * buffers.x_width; ++i) weight_sums[i] = 0;
    for (int64_t i = 0; i < heads * buffers.z_width; ++i) head_sums[i] = 0;
    const int64_t last = (chunk + 1) * tiles / gradients.chunks;
    for (int64_t index = chunk * tiles / gradients.chunks; index < last; ++index) {
      const TimeTile tile = TimeTile::of<scalar_t>(shape, index);
      backward_tile(inputs, packed, gradients, buffers, tile);
      transpose_matrix(buffers.x, kBufferStep, buffers.x_width, tile.width, buffers.x_columns,
                       buffers.x_step());
      transpose_matrix(buffers.z, kBufferStep, buffers.z_width, tile.width, buffers.z_columns,
                       buffers.z_step());
      add_products(buffers.grad_h, gates, buffers.x_columns, buffers.x_step(), buffers.x_width,
                   tile, weight_sums);
      add_products(buffers.grad, heads, buffers.z_columns, buffers.z_step(), buffers.z_width, tile,
                   head_sums);
      scalar_t* row_sums = gradients.row_sums + index * (gates + heads);
      for (int64_t c = 0; c < gates; ++c) {
        row_sums[c] = sum_of_row(buffers.grad_h + c * kBufferStep, tile.width);
      }
      for (int64_t row = 0; row < heads; ++row) {
        row_sums[gates + row] = sum_of_row(buffers.grad + row * kBufferStep, tile.width);
      }
    }
  }
}

template <SimdLevel level, typename scalar_t>
void causal_conv1d_backward_x(const CausalConv1dInputs<scalar_t>& inputs,
                              const CausalConv1dPacked<scalar_t>& packed,
                              const CausalConv1dGradients<scalar_t>& gradients, scalar_t* scratch,
                              int64_t begin, int64_t end) {
  [[maybe_unused]] const DenormalsAreZero fast;
  constexpr int64_t columns = kTileColumns<scalar_t>, lanes = kLanes<scalar_t>;
  const CausalConv1dShape& shape = inputs.shape;
  const int64_t gates = 2 * shape.G;
  const int64_t K = shape.taps * gates;
  alignas(64) scalar_t product[kTileRows * columns];
  const Panels panels = Panels::of(shape.R, kTileRows);
  for (int64_t index = begin; index < end; ++index) {
    const TimeTile tile = TimeTile::of<scalar_t>(shape, index);
    for (int64_t j = 0; j < shape.taps; ++j) {
      const int64_t shift = (shape.taps - 1 - j) * shape.dilation;
      read_rows(static_cast<const scalar_t*>(gradients.grad_h) + tile.n * gates * shape.T, gates,
                shape.T, tile.start + shift, tile, scratch + j * gates * kBufferStep);
    }
    for (int64_t p = 0; p < panels.count; ++p) {
      const int64_t first = panels.first(p);
      const auto multiply = multiply_packed<scalar_t>(panels.rows(p));
      for (int64_t t = 0; t < tile.width; t += columns) {
        multiply(packed.gates_back + first * K, scratch + t, kBufferStep, K, product, columns);
        for (int64_t m = 0; m < panels.rows(p); ++m) {
          const int64_t at = (tile.n * shape.R + first + m) * shape.T + tile.start + t;
          for (int64_t v = 0; v < columns; v += lanes) {
            const int64_t left = tile.count - t - v;
            Vector<scalar_t> value = load(product + m * columns + v);
            if (shape.residual) value += load_within(gradients.grad_out + at + v, left);
            store_within(gradients.grad_x + at + v, value, left);
          }
        }
      }
    }
  }
}

template <SimdLevel level, typename scalar_t>
void causal_conv1d_add_up(const scalar_t* sums, int64_t count, int64_t size, scalar_t* to,
                          int64_t begin, int64_t end) {
  constexpr int64_t block = 4 * kLanes<scalar_t>;
  for (int64_t first = begin; first < end; first += block) {
    const int64_t last = first + block < end ? first + block : end;
    scalar_t total[block] = {};
    for (int64_t n = 0; n < count; ++n) {
      for (int64_t i = first; i < last; ++i) total[i - first] += sums[n * size + i];
    }
    for (int64_t i = first; i < last; ++i) to[i] = total[i - first];
  }
}

#define GENFAST_INSTANTIATE(scalar_t)                                           \
  template void causal_conv1d_backward<GENFAST_SIMD_LEVEL, scalar_t>(           \
      const CausalConv1dInputs<scalar_t>&, const CausalConv1dPacked<scalar_t>&, \
      const CausalConv1dGradients<scalar_t>&, scalar_t*, int64_t, int64_t);     \
  template void causal_conv1d_backward_x<GENFAST_SIMD_LEVEL, scalar_t>(         \
      const CausalConv1dInputs<scalar_t>&, const CausalConv1dPacked<scalar_t>&, \
      const CausalConv1dGradients<scalar_t>&, scalar_t*, int64_t, int64_t);     \
  template void causal_conv1d_add_up<GENFAST_SIMD_LEVEL, scalar_t>(             \
      const scalar_t*, int64_t, int64_t, scalar_t*, int64_t, int64_t);
GENFAST_INSTANTIATE(float)
GENFAST_INSTANTIATE(double)
#undef GENFAST_INSTANTIATE

}  // namespace genfast::cpu
