// Activation, addend and residual of a convolution, and their gradient, a row of pixels at a time.
#include "kernels/masked_conv2d_epilogue.h"
#include "kernels/cpu/denormals.h"
#include "kernels/cpu/gate.h"
#include "kernels/cpu/rows.h"

namespace genfast::cpu {
namespace {

enum class Addend { kNone, kOneNumber, kRow };

template <typename scalar_t>
GENFAST_INLINE EluExponentials<Vector<scalar_t>> elu_exponentials(Vector<scalar_t> a) {
  const auto of = exp_of_negative<scalar_t>(-absolute<scalar_t>(a));
  return {of.value, of.less1};
}

// One row of the convolution's result, with what is added to it, and where the sum is kept.
template <Addend addend, typename scalar_t>
struct PreRow {
  const scalar_t* pre;
  const scalar_t* added;
  scalar_t* kept;

  PreRow(const ConvEpilogue<scalar_t>& params, const EpilogueBlock<scalar_t>& block,
         int64_t channel, const scalar_t* from)
      : pre(from), added(nullptr), kept(nullptr) {
    if constexpr (addend != Addend::kNone) {
      added = params.addend + block.n * params.addend_example + channel * params.addend_channel +
              block.first_pixel * params.addend_pixel;
    }
    if (params.kept != nullptr) {
      kept = params.kept + (block.n * params.C + channel) * params.pixels + block.first_pixel;
    }
  }

  template <typename Part>
  GENFAST_INLINE Vector<scalar_t> at(const PreRow& row, int64_t k, Part part) {
    Vector<scalar_t> value = load(row.pre + k, part);
    if constexpr (addend == Addend::kOneNumber) value += broadcast(*row.added);
    if constexpr (addend == Addend::kRow) value += load(row.added + k, part);
    if (row.kept != nullptr) store(row.kept + k, value, part);
    return value;
  }
};

template <Activation activation, Addend addend, typename scalar_t>
void apply_to_block(const ConvEpilogue<scalar_t>& params, const EpilogueBlock<scalar_t>& block) {
  using Row = PreRow<addend, scalar_t>;
  const int64_t units = epilogue_units(activation, params.C);
  const int64_t channels = result_channels(activation, params.C);
  for (int64_t u = 0; u < block.units; ++u) {
    const int64_t unit = block.first_unit + u;
    const scalar_t* pre = block.pre + u * block.plane;
    const Row row(params, block, unit, pre);
    const Row partner(params, block, unit + units,
                      activation == Activation::kGate ? pre + block.half : nullptr);
    const int64_t first = (block.n * channels + unit) * params.pixels + block.first_pixel;
    scalar_t* out = params.out + first;
    const scalar_t* residual = params.residual == nullptr ? nullptr : params.residual + first;
    const int64_t second = params.C * params.pixels;  // to the channels of elu(-a)
    for_vectors<scalar_t>(0, block.pixels, [&](int64_t k, auto part) {
      const auto write = [&](int64_t at, Vector<scalar_t> value) {
        if (residual != nullptr) value += load(residual + at, part);
        store(out + at, value, part);
      };
      const Vector<scalar_t> a = Row::at(row, k, part);
      if constexpr (activation == Activation::kNone) {
        write(k, a);
      } else if constexpr (activation == Activation::kRelu) {
        write(k, relu_value<scalar_t>(a));
      } else if constexpr (activation == Activation::kGate) {
        const Vector<scalar_t> b = Row::at(partner, k, part);
        write(k, gate_value<scalar_t>(a, b, gate_exponentials<scalar_t>(a, b)));
      } else {
        const auto of = elu_exponentials<scalar_t>(a);
        write(k, elu_value<scalar_t>(a, of));
        if constexpr (activation == Activation::kConcatElu) {
          write(k + second, elu_value_of_minus<scalar_t>(a, of));
        }
      }
    });
  }
}

template <Activation activation, bool of_output, typename scalar_t>
void backward_rows(const ConvEpilogueBackward<scalar_t>& params, int64_t begin, int64_t end) {
  const int64_t units = epilogue_units(activation, params.C);
  const int64_t channels = result_channels(activation, params.C);
  for (int64_t row = begin; row < end; ++row) {
    const int64_t n = row / units, unit = row % units;
    const int64_t channel = n * params.C + unit;
    const scalar_t* kept = params.kept + channel * params.pixels;
    const scalar_t* grad = params.grad + (n * channels + unit) * params.pixels;
    scalar_t* to = params.grad_pre + channel * params.pixels;
    const int64_t second = units * params.pixels;  // to the partner, or the channels of elu(-a)
    RowSum<scalar_t> sum, sum_of_partner;
    for_vectors<scalar_t>(0, params.pixels, [&](int64_t k, auto part) {
      const Vector<scalar_t> a = load(kept + k, part), of_out = load(grad + k, part);
      Vector<scalar_t> of_a = of_out;
      if constexpr (activation == Activation::kRelu) {
        of_a = relu_gradient<scalar_t>(of_out, a);
      } else if constexpr (activation == Activation::kElu && of_output) {
        of_a = elu_gradient_of_result<scalar_t>(of_out, a);
      } else if constexpr (activation == Activation::kElu) {
        of_a = elu_gradient<scalar_t>(of_out, a, elu_exponentials<scalar_t>(a));
      } else if constexpr (activation == Activation::kConcatElu) {
        of_a = concat_elu_gradient<scalar_t>(of_out, load(grad + second + k, part), a,
                                             elu_exponentials<scalar_t>(a));
      } else if constexpr (activation == Activation::kGate) {
        const Vector<scalar_t> b = load(kept + second + k, part);
        const auto point = gate_point<scalar_t>(a, b, gate_exponentials<scalar_t>(a, b));
        const Vector<scalar_t> of_b = of_out * point.slope_b;
        of_a = of_out * point.slope_a;
        store(to + second + k, of_b, part);
        sum_of_partner.add(of_b, part);
      }
      store(to + k, of_a, part);
      sum.add(of_a, part);
    });
    params.sums[channel] = sum.total();
    if constexpr (activation == Activation::kGate) {
      params.sums[channel + units] = sum_of_partner.total();
    }
  }
}

}  // namespace

template <SimdLevel level, typename scalar_t>
void apply_epilogue(const ConvEpilogue<scalar_t>& params, const EpilogueBlock<scalar_t>& block) {
  with_activation(params.activation, [&]<Activation activation>() {
    if (params.addend == nullptr) {
      apply_to_block<activation, Addend::kNone>(params, block);
    } else if (params.addend_pixel == 0) {
      apply_to_block<activation, Addend::kOneNumber>(params, block);
    } else {
      apply_to_block<activation, Addend::kRow>(params, block);
    }
  });
}

template <SimdLevel level, typename scalar_t>
void epilogue_backward(const ConvEpilogueBackward<scalar_t>& params, int64_t begin, int64_t end) {
  [[maybe_unused]] const DenormalsAreZero fast;
  with_activation(params.activation, [&]<Activation activation>() {
    if (params.of_output) {
      backward_rows<activation, true>(params, begin, end);
    } else {
      backward_rows<activation, false>(params, begin, end);
    }
  });
}

#define GENFAST_INSTANTIATE(scalar_t)                                                         \
  template void apply_epilogue<GENFAST_SIMD_LEVEL, scalar_t>(const ConvEpilogue<scalar_t>&,   \
                                                             const EpilogueBlock<scalar_t>&); \
  template void epilogue_backward<GENFAST_SIMD_LEVEL, scalar_t>(                              \
      const ConvEpilogueBackward<scalar_t>&, int64_t, int64_t);
GENFAST_INSTANTIATE(float)
GENFAST_INSTANTIATE(double)
#undef GENFAST_INSTANTIATE

}  // namespace genfast::cpu
