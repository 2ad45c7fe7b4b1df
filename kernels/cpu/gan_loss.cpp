#include "kernels/gan_loss.h"

namespace genfast::cpu {
namespace {

// A chunk is worked through in tiles: first the arithmetic of a tile, elementwise and in the dtype,
// then its sum, in double and in a fixed order.
constexpr int64_t kTile = 512;  // elements
constexpr int kLanes = 16;      // partial sums, so that the additions need not wait for each other

struct LaneSums {
  double lane[kLanes] = {};

  template <typename scalar_t>
  void add(const scalar_t* values, int64_t count) {
    int64_t i = 0;
    for (; i + kLanes <= count; i += kLanes) {
      for (int l = 0; l < kLanes; ++l) lane[l] += static_cast<double>(values[i + l]);
    }
    for (int l = 0; i < count; ++i, ++l) lane[l] += static_cast<double>(values[i]);
  }

  double total() const {
    double sum = 0;
    for (int l = 0; l < kLanes; ++l) sum += lane[l];
    return sum;
  }
};

// The part of one side that a chunk covers.
struct Piece {
  bool real;
  int64_t start, count;  // elements within the side
};

Piece piece_of_chunk(int64_t chunk, int64_t fake_count, int64_t real_count) {
  const int64_t fake_chunks = gan_loss_chunks(fake_count);
  const bool real = chunk >= fake_chunks;
  const int64_t start = (chunk - (real ? fake_chunks : 0)) * kGanLossChunk;
  const int64_t left = (real ? real_count : fake_count) - start;
  return {real, start, left < kGanLossChunk ? left : kGanLossChunk};
}

// Returns the sum of the terms; writes their derivatives to `slope` unless it is null.
template <GanForm form, typename scalar_t>
double forward_piece(const GanTerm& term, const scalar_t* x, scalar_t* slope, int64_t count) {
  LaneSums sums;
  scalar_t values[kTile];
  for (int64_t start = 0; start < count; start += kTile) {
    const int64_t tile = count - start < kTile ? count - start : kTile;
    const scalar_t* __restrict x_tile = x + start;
    if (slope != nullptr) {
      scalar_t* __restrict slope_tile = slope + start;
      for (int64_t i = 0; i < tile; ++i) {
        const auto point = gan_point<form>(term, x_tile[i]);
        values[i] = point.value;
        slope_tile[i] = point.first;
      }
    } else {
      for (int64_t i = 0; i < tile; ++i) values[i] = gan_point<form>(term, x_tile[i]).value;
    }
    sums.add(values, tile);
  }
  return sums.total();
}

// Returns the sum of v * slope; writes v * factor * (second derivative) to `grad`.
template <GanForm form, typename scalar_t>
double double_backward_piece(const GanTerm& term, const scalar_t* x, const scalar_t* v,
                             scalar_t factor, scalar_t* grad, int64_t count) {
  LaneSums sums;
  scalar_t values[kTile];
  for (int64_t start = 0; start < count; start += kTile) {
    const int64_t tile = count - start < kTile ? count - start : kTile;
    const scalar_t* __restrict x_tile = x + start;
    const scalar_t* __restrict v_tile = v + start;
    scalar_t* __restrict grad_tile = grad + start;
    for (int64_t i = 0; i < tile; ++i) {
      const auto point = gan_point<form>(term, x_tile[i]);
      values[i] = v_tile[i] * point.first;
      grad_tile[i] = v_tile[i] * factor * point.second;
    }
    sums.add(values, tile);
  }
  return sums.total();
}

template <typename scalar_t>
void scale(const scalar_t* __restrict from, scalar_t factor, scalar_t* __restrict to,
           int64_t count) {
  for (int64_t i = 0; i < count; ++i) to[i] = from[i] * factor;
}

}  // namespace

template <SimdLevel level, typename scalar_t>
void gan_loss_forward(const GanLossForward<scalar_t>& params, double* chunk_sums, int64_t begin,
                      int64_t end) {
  at_gan_form(params.fake.term.form, [&]<GanForm form>() {
    for (int64_t chunk = begin; chunk < end; ++chunk) {
      const Piece piece = piece_of_chunk(chunk, params.fake.count, params.real.count);
      const GanLogits<scalar_t>& side = piece.real ? params.real : params.fake;
      const int64_t flat = piece.start + (piece.real ? params.fake.count : 0);
      chunk_sums[chunk] =
          forward_piece<form>(side.term, side.data + piece.start,
                              params.slope ? params.slope + flat : nullptr, piece.count);
    }
  });
}

template <SimdLevel level, typename scalar_t>
void gan_loss_backward(const GanLossBackward<scalar_t>& params, int64_t begin, int64_t end) {
  const scalar_t grad_loss = *params.grad_loss;
  const int64_t fake_end = end < params.fake_count ? end : params.fake_count;
  if (begin < fake_end) {
    scale(params.slope + begin, grad_loss / static_cast<scalar_t>(params.fake_count),
          params.grad_fake + begin, fake_end - begin);
  }
  const int64_t real_begin = begin > params.fake_count ? begin : params.fake_count;
  if (real_begin < end) {
    scale(params.slope + real_begin, grad_loss / static_cast<scalar_t>(params.real_count),
          params.grad_real + (real_begin - params.fake_count), end - real_begin);
  }
}

template <SimdLevel level, typename scalar_t>
void gan_loss_double_backward(const GanLossDoubleBackward<scalar_t>& params, double* chunk_sums,
                              int64_t begin, int64_t end) {
  at_gan_form(params.fake.term.form, [&]<GanForm form>() {
    for (int64_t chunk = begin; chunk < end; ++chunk) {
      const Piece piece = piece_of_chunk(chunk, params.fake.count, params.real.count);
      const GanLogits<scalar_t>& side = piece.real ? params.real : params.fake;
      chunk_sums[chunk] = double_backward_piece<form>(
          side.term, side.data + piece.start,
          (piece.real ? params.v_real : params.v_fake) + piece.start,
          *params.grad_loss / static_cast<scalar_t>(side.count),
          (piece.real ? params.grad_real : params.grad_fake) + piece.start, piece.count);
    }
  });
}

#define GENFAST_INSTANTIATE(scalar_t)                                                             \
  template void gan_loss_forward<GENFAST_SIMD_LEVEL, scalar_t>(const GanLossForward<scalar_t>&,   \
                                                               double*, int64_t, int64_t);        \
  template void gan_loss_backward<GENFAST_SIMD_LEVEL, scalar_t>(const GanLossBackward<scalar_t>&, \
                                                                int64_t, int64_t);                \
  template void gan_loss_double_backward<GENFAST_SIMD_LEVEL, scalar_t>(                           \
      const GanLossDoubleBackward<scalar_t>&, double*, int64_t, int64_t);
GENFAST_INSTANTIATE(float)
GENFAST_INSTANTIATE(double)
#undef GENFAST_INSTANTIATE

}  // namespace genfast::cpu
