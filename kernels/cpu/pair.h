// Two vectors that go through the same arithmetic side by side: a long chain of dependent
// operations leaves half of the processor idle, and a second chain between its links fills it.
#pragma once

#include <type_traits>

#include "kernels/cpu/vector_math.h"

namespace genfast::cpu {
namespace {

template <typename scalar_t>
struct Pair {
  Vector<scalar_t> first, second;
};

template <typename scalar_t>
struct PairMask {
  IndexVector<scalar_t> first, second;
};

#define GENFAST_PAIR_OPERATOR(op)                                                                 \
  template <typename scalar_t>                                                                    \
  GENFAST_INLINE Pair<scalar_t> operator op(Pair<scalar_t> a, Pair<scalar_t> b) {                 \
    return {a.first op b.first, a.second op b.second};                                            \
  }                                                                                               \
  template <typename scalar_t>                                                                    \
  GENFAST_INLINE Pair<scalar_t> operator op(Pair<scalar_t> a, std::type_identity_t<scalar_t> b) { \
    return {a.first op b, a.second op b};                                                         \
  }
GENFAST_PAIR_OPERATOR(+)
GENFAST_PAIR_OPERATOR(-)
GENFAST_PAIR_OPERATOR(*)
GENFAST_PAIR_OPERATOR(/)
#undef GENFAST_PAIR_OPERATOR

template <typename scalar_t>
GENFAST_INLINE Pair<scalar_t> operator-(Pair<scalar_t> a) {
  return {-a.first, -a.second};
}

#define GENFAST_PAIR_COMPARISON(op)                                                   \
  template <typename scalar_t>                                                        \
  GENFAST_INLINE PairMask<scalar_t> operator op(Pair<scalar_t> a, Pair<scalar_t> b) { \
    return {a.first op b.first, a.second op b.second};                                \
  }
GENFAST_PAIR_COMPARISON(<)
GENFAST_PAIR_COMPARISON(>)
GENFAST_PAIR_COMPARISON(==)
#undef GENFAST_PAIR_COMPARISON

template <typename scalar_t>
GENFAST_INLINE PairMask<scalar_t> operator|(PairMask<scalar_t> a, PairMask<scalar_t> b) {
  return {a.first | b.first, a.second | b.second};
}

template <typename scalar_t>
GENFAST_INLINE Pair<scalar_t> select(PairMask<scalar_t> mask, Pair<scalar_t> a, Pair<scalar_t> b) {
  return {select<scalar_t>(mask.first, a.first, b.first),
          select<scalar_t>(mask.second, a.second, b.second)};
}

template <typename scalar_t>
GENFAST_INLINE Pair<scalar_t> pair_of(scalar_t value) {
  return {broadcast(value), broadcast(value)};
}

template <typename scalar_t>
GENFAST_INLINE Pair<scalar_t> load_pair(const scalar_t* from) {
  return {load(from), load(from + kLanes<scalar_t>)};
}

template <typename scalar_t>
GENFAST_INLINE void store_pair(scalar_t* to, Pair<scalar_t> value) {
  store(to, value.first);
  store(to + kLanes<scalar_t>, value.second);
}

}  // namespace
}  // namespace genfast::cpu
