#include "kernels/cpu/causal_conv1d_tile.h"
#include "kernels/cpu/denormals.h"

namespace genfast::cpu {
namespace {

// Writes the matrix [K, rows] panel by panel: of each panel all rows for k = 0, then for k = 1.
template <typename scalar_t, typename Element>
void pack_panels(int64_t rows, int64_t K, int64_t most, scalar_t* to, Element&& element) {
  const Panels panels = Panels::of(rows, most);
  for (int64_t p = 0; p < panels.count; ++p) {
    for (int64_t k = 0; k < K; ++k) {
      for (int64_t m = 0; m < panels.rows(p); ++m) *to++ = element(panels.first(p) + m, k);
    }
  }
}

// Rows first .. of the product of z with packed weights, into rows of a tensor [rows, T].
template <typename scalar_t>
void write_heads(const CausalConv1dShape& shape, const TimeTile& tile, int64_t rows,
                 const scalar_t* packed, const scalar_t* z, const scalar_t* bias,
                 const scalar_t* stream, scalar_t* to) {
  constexpr int64_t columns = kTileColumns<scalar_t>, lanes = kLanes<scalar_t>;
  alignas(64) scalar_t product[kTileRows * columns];
  const Panels panels = Panels::of(rows, kTileRows);
  for (int64_t p = 0; p < panels.count; ++p) {
    const int64_t first = panels.first(p);
    const auto multiply = multiply_packed<scalar_t>(panels.rows(p));
    for (int64_t t = 0; t < tile.width; t += columns) {
      multiply(packed + first * shape.G, z + t, kBufferStep, shape.G, product, columns);
      for (int64_t m = 0; m < panels.rows(p); ++m) {
        const int64_t row = first + m;
        const Vector<scalar_t> added = broadcast(bias == nullptr ? scalar_t(0) : bias[row]);
        scalar_t* line = to + (tile.n * rows + row) * shape.T + tile.start;
        for (int64_t v = 0; v < columns; v += lanes) {
          Vector<scalar_t> value = load(product + m * columns + v) + added;
          if (stream != nullptr) value += load(stream + row * kBufferStep + t + v);
          store_within(line + t + v, value, tile.count - t - v);
        }
      }
    }
  }
}

}  // namespace

template <SimdLevel level, typename scalar_t>
void causal_conv1d_pack(const CausalConv1dInputs<scalar_t>& inputs,
                        const CausalConv1dPacked<scalar_t>& packed) {
  const CausalConv1dShape& shape = inputs.shape;
  const int64_t R = shape.R, G = shape.G, S = shape.S, taps = shape.taps;
  const auto weight = [&](int64_t c, int64_t r, int64_t j) {
    return inputs.weight[(c * R + r) * taps + j];
  };
  const Panels pairs = Panels::of(G, kTilePairs);
  scalar_t* to = packed.gates;
  for (int64_t p = 0; p < pairs.count; ++p) {
    for (int64_t k = 0; k < shape.K(); ++k) {
      for (int64_t half = 0; half < 2; ++half) {
        for (int64_t m = 0; m < pairs.rows(p); ++m) {
          *to++ = weight(half * G + pairs.first(p) + m, k % R, k / R);
        }
      }
    }
  }
  const int64_t residual_rows = shape.residual ? R : 0;
  if (packed.heads != nullptr) {
    pack_panels(residual_rows, G, kTileRows, packed.heads,
                [&](int64_t row, int64_t g) { return inputs.residual_weight[row * G + g]; });
    pack_panels(S, G, kTileRows, packed.heads + residual_rows * G,
                [&](int64_t row, int64_t g) { return inputs.skip_weight[row * G + g]; });
  }
  if (packed.heads_back != nullptr) {
    pack_panels(G, shape.heads(), kTilePairs, packed.heads_back, [&](int64_t g, int64_t row) {
      return row < residual_rows ? inputs.residual_weight[row * G + g]
                                 : inputs.skip_weight[(row - residual_rows) * G + g];
    });
  }
  if (packed.gates_back != nullptr) {
    pack_panels(R, taps * 2 * G, kTileRows, packed.gates_back,
                [&](int64_t r, int64_t k) { return weight(k % (2 * G), r, k / (2 * G)); });
  }
}

template <SimdLevel level, typename scalar_t>
void causal_conv1d(const CausalConv1dInputs<scalar_t>& inputs,
                   const CausalConv1dPacked<scalar_t>& packed,
                   const CausalConv1dOutputs<scalar_t>& outputs, scalar_t* scratch, int64_t begin,
                   int64_t end) {
  [[maybe_unused]] const DenormalsAreZero fast;
  const CausalConv1dShape& shape = inputs.shape;
  const int64_t residual_rows = shape.residual ? shape.R : 0;
  scalar_t* x = scratch;
  scalar_t* z = x + shape.K() * kBufferStep;
  const scalar_t* now = x + (shape.taps - 1) * shape.R * kBufferStep;  // the tap without a shift
  for (int64_t index = begin; index < end; ++index) {
    const TimeTile tile = TimeTile::of<scalar_t>(shape, index);
    read_taps(inputs, tile, x);
    for_gates(
        inputs, packed.gates, tile, x, [](int64_t, int64_t, int64_t) {},
        [&](int64_t g, int64_t, int64_t, int64_t t, Vector<scalar_t> a, Vector<scalar_t> b) {
          store(z + g * kBufferStep + t,
                gate_value<scalar_t>(a, b, gate_exponentials<scalar_t>(a, b)));
        });
    if (shape.residual) {
      write_heads(shape, tile, residual_rows, packed.heads, z, inputs.residual_bias, now,
                  outputs.out);
    }
    write_heads(shape, tile, shape.S, packed.heads + residual_rows * shape.G, z, inputs.skip_bias,
                static_cast<const scalar_t*>(nullptr), outputs.skip);
  }
}

#define GENFAST_INSTANTIATE(scalar_t)                                            \
  template void causal_conv1d_pack<GENFAST_SIMD_LEVEL, scalar_t>(                \
      const CausalConv1dInputs<scalar_t>&, const CausalConv1dPacked<scalar_t>&); \
  template void causal_conv1d<GENFAST_SIMD_LEVEL, scalar_t>(                     \
      const CausalConv1dInputs<scalar_t>&, const CausalConv1dPacked<scalar_t>&,  \
      const CausalConv1dOutputs<scalar_t>&, scalar_t*, int64_t, int64_t);
GENFAST_INSTANTIATE(float)
GENFAST_INSTANTIATE(double)
#undef GENFAST_INSTANTIATE

}  // namespace genfast::cpu
