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

// Calls function(first, count) for the tiles of a piece.
template <typename Function>
GENFAST_INLINE void for_each_tile(int64_t count, Function&& function) {
  for (int64_t first = 0; first < count; first += kTile) {
    function(first, count - first < kTile ? count - first : kTile);
  }
}

// The terms at argument(i) for i in [0, count); writes their slopes unless `slope` is null, and
// adds them up if asked to.
template <GanForm form, bool adds_slopes, typename scalar_t, typename Argument>
GENFAST_INLINE GanSums forward_piece(const GanTerm& term, Argument&& argument, scalar_t* slope,
                                     int64_t count) {
  LaneSums sums, slope_sums;
  scalar_t values[kTile];
  for_each_tile(count, [&](int64_t first, int64_t tile) {
    if (slope == nullptr) {
      for (int64_t i = 0; i < tile; ++i) {
        values[i] = gan_point<form>(term, argument(first + i)).value;
      }
    } else {
      scalar_t* __restrict slope_tile = slope + first;
      for (int64_t i = 0; i < tile; ++i) {
        const auto point = gan_point<form>(term, argument(first + i));
        values[i] = point.value;
        slope_tile[i] = point.first;
      }
      if (adds_slopes) slope_sums.add(slope_tile, tile);
    }
    sums.add(values, tile);
  });
  return {sums.total(), slope_sums.total()};
}

// Along direction(i): writes direction * factor * (second derivative) to `grad`, and its negative
// to `negative` unless that is null.
template <GanForm form, typename scalar_t, typename Argument, typename Direction>
GENFAST_INLINE GanSums double_backward_piece(const GanTerm& term, Argument&& argument,
                                             Direction&& direction, scalar_t factor, scalar_t* grad,
                                             scalar_t* negative, int64_t count) {
  LaneSums sums, grad_sums;
  scalar_t values[kTile];
  for_each_tile(count, [&](int64_t first, int64_t tile) {
    scalar_t* __restrict grad_tile = grad + first;
    for (int64_t i = 0; i < tile; ++i) {
      const auto point = gan_point<form>(term, argument(first + i));
      const scalar_t v = direction(first + i);
      values[i] = v * point.first;
      grad_tile[i] = v * factor * point.second;
    }
    sums.add(values, tile);
    grad_sums.add(grad_tile, tile);
    if (negative == nullptr) return;
    for (int64_t i = 0; i < tile; ++i) negative[first + i] = -grad_tile[i];
  });
  return {sums.total(), grad_sums.total()};
}

// to = (from - minus) * factor, also in place; in two loops, so that both vectorise.
template <typename scalar_t>
void shift_and_scale(const scalar_t* __restrict from, scalar_t minus, scalar_t factor,
                     scalar_t* __restrict to, int64_t count) {
  for (int64_t i = 0; i < count; ++i) to[i] = (from[i] - minus) * factor;
}

template <typename scalar_t>
void shift_and_scale_in_place(scalar_t* values, scalar_t minus, scalar_t factor, int64_t count) {
  for (int64_t i = 0; i < count; ++i) values[i] = (values[i] - minus) * factor;
}

template <typename scalar_t>
void write_gradients(const scalar_t* slope, scalar_t minus, scalar_t factor, scalar_t* grad,
                     int64_t count) {
  slope == grad ? shift_and_scale_in_place(grad, minus, factor, count)
                : shift_and_scale(slope, minus, factor, grad, count);
}

template <typename scalar_t>
void fill(scalar_t value, scalar_t* to, int64_t count) {
  for (int64_t i = 0; i < count; ++i) to[i] = value;
}

}  // namespace

template <SimdLevel level, typename scalar_t>
void gan_loss_sums(const GanLogits<scalar_t>& fake, const GanLogits<scalar_t>& real, GanSums* sums,
                   int64_t begin, int64_t end) {
  for (int64_t chunk = begin; chunk < end; ++chunk) {
    const Piece piece = piece_of_chunk(chunk, fake.count, real.count);
    LaneSums sum;
    sum.add((piece.real ? real : fake).data + piece.start, piece.count);
    sums[chunk] = {sum.total(), 0};
  }
}

template <SimdLevel level, typename scalar_t>
void gan_loss_forward(const GanLossForward<scalar_t>& params, GanSums* sums, int64_t begin,
                      int64_t end) {
  at_gan_form(params.fake.term.form, [&]<GanForm form>() {
    for (int64_t chunk = begin; chunk < end; ++chunk) {
      const Piece piece = piece_of_chunk(chunk, params.fake.count, params.real.count);
      const GanLogits<scalar_t>& side = piece.real ? params.real : params.fake;
      const int64_t flat = piece.start + (piece.real ? params.fake.count : 0);
      scalar_t* slope = params.slope ? params.slope + flat : nullptr;
      const scalar_t* x = side.data + piece.start;
      if (params.pairing == GanPairing::kPairs) {
        const scalar_t* other = params.real.data + piece.start;
        sums[chunk] = forward_piece<form, false>(
            side.term, [=](int64_t i) { return x[i] - other[i]; }, slope, piece.count);
      } else if (params.pairing == GanPairing::kAverages) {
        const scalar_t minus = static_cast<scalar_t>(side.minus);
        sums[chunk] = forward_piece<form, true>(
            side.term, [=](int64_t i) { return x[i] - minus; }, slope, piece.count);
      } else {
        sums[chunk] = forward_piece<form, false>(
            side.term, [=](int64_t i) { return x[i]; }, slope, piece.count);
      }
    }
  });
}

template <SimdLevel level, typename scalar_t>
void gan_loss_backward(const GanLossBackward<scalar_t>& params, int64_t begin, int64_t end) {
  const int64_t fake_count = params.fake_count;
  const int64_t real_count = params.real_count;
  const scalar_t fake_factor = *params.grad_loss / static_cast<scalar_t>(fake_count);
  if (params.pairing == GanPairing::kPairs) {  // the real side first: the fake one may overwrite
    write_gradients(params.slope + begin, scalar_t(0), -fake_factor, params.grad_real + begin,
                    end - begin);
    write_gradients(params.slope + begin, scalar_t(0), fake_factor, params.grad_fake + begin,
                    end - begin);
    return;
  }
  const int64_t fake_end = end < fake_count ? end : fake_count;
  const int64_t real_begin = begin > fake_count ? begin : fake_count;
  const int64_t real_end = end < fake_count + real_count ? end : fake_count + real_count;
  const scalar_t real_factor = *params.grad_loss / static_cast<scalar_t>(real_count);
  scalar_t* grad_real = params.grad_real + (real_begin - fake_count);
  if (params.slope == nullptr) {
    fill(static_cast<scalar_t>(params.fake_slope) * fake_factor, params.grad_fake + begin,
         fake_end - begin);
    fill(static_cast<scalar_t>(params.real_slope) * real_factor, grad_real, real_end - real_begin);
    return;
  }
  const scalar_t* means = params.slope + fake_count + real_count;
  const bool averages = params.pairing == GanPairing::kAverages;
  if (begin < fake_end) {
    write_gradients(params.slope + begin, averages ? means[1] : scalar_t(0), fake_factor,
                    params.grad_fake + begin, fake_end - begin);
  }
  if (real_begin < real_end) {
    write_gradients(params.slope + real_begin, averages ? means[0] : scalar_t(0), real_factor,
                    grad_real, real_end - real_begin);
  }
}

template <SimdLevel level, typename scalar_t>
void gan_loss_double_backward(const GanLossDoubleBackward<scalar_t>& params, GanSums* sums,
                              int64_t begin, int64_t end) {
  at_gan_form(params.fake.term.form, [&]<GanForm form>() {
    for (int64_t chunk = begin; chunk < end; ++chunk) {
      const Piece piece = piece_of_chunk(chunk, params.fake.count, params.real.count);
      const GanLogits<scalar_t>& side = piece.real ? params.real : params.fake;
      const scalar_t factor = *params.grad_loss / static_cast<scalar_t>(side.count);
      const scalar_t* x = side.data + piece.start;
      const scalar_t* v = (piece.real ? params.v_real : params.v_fake) + piece.start;
      scalar_t* grad = (piece.real ? params.grad_real : params.grad_fake) + piece.start;
      if (params.pairing == GanPairing::kPairs) {
        const scalar_t* other = params.real.data + piece.start;
        const scalar_t* v_other = params.v_real + piece.start;
        sums[chunk] = double_backward_piece<form>(
            side.term, [=](int64_t i) { return x[i] - other[i]; },
            [=](int64_t i) { return v[i] - v_other[i]; }, factor, grad,
            params.grad_real + piece.start, piece.count);
      } else {
        const scalar_t minus = static_cast<scalar_t>(side.minus);
        const scalar_t v_minus =
            static_cast<scalar_t>(piece.real ? params.v_real_minus : params.v_fake_minus);
        sums[chunk] = double_backward_piece<form>(
            side.term, [=](int64_t i) { return x[i] - minus; },
            [=](int64_t i) { return v[i] - v_minus; }, factor, grad,
            static_cast<scalar_t*>(nullptr), piece.count);
      }
    }
  });
}

#define GENFAST_INSTANTIATE(scalar_t)                                                             \
  template void gan_loss_sums<GENFAST_SIMD_LEVEL, scalar_t>(                                      \
      const GanLogits<scalar_t>&, const GanLogits<scalar_t>&, GanSums*, int64_t, int64_t);        \
  template void gan_loss_forward<GENFAST_SIMD_LEVEL, scalar_t>(const GanLossForward<scalar_t>&,   \
                                                               GanSums*, int64_t, int64_t);       \
  template void gan_loss_backward<GENFAST_SIMD_LEVEL, scalar_t>(const GanLossBackward<scalar_t>&, \
                                                                int64_t, int64_t);                \
  template void gan_loss_double_backward<GENFAST_SIMD_LEVEL, scalar_t>(                           \
      const GanLossDoubleBackward<scalar_t>&, GanSums*, int64_t, int64_t);
GENFAST_INSTANTIATE(float)
GENFAST_INSTANTIATE(double)
#undef GENFAST_INSTANTIATE

}  // namespace genfast::cpu
