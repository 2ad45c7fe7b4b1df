// Rows of numbers that vectors need not divide: their elements, and their sums.
#pragma once

#include "kernels/cpu/vector.h"

namespace genfast::cpu {
namespace {

// How much of a vector an access means: all of it, or the first elements at the end of a row.
struct Whole {};
struct First {
  int64_t count;
};

template <typename scalar_t>
GENFAST_INLINE Vector<scalar_t> load(const scalar_t* from, Whole) {
  return cpu::load(from);
}
template <typename scalar_t>
GENFAST_INLINE Vector<scalar_t> load(const scalar_t* from, First first) {
  return load_first(from, first.count);
}
template <typename scalar_t>
GENFAST_INLINE void store(scalar_t* to, Vector<scalar_t> value, Whole) {
  cpu::store(to, value);
}
template <typename scalar_t>
GENFAST_INLINE void store(scalar_t* to, Vector<scalar_t> value, First first) {
  store_first(to, value, first.count);
}

// Calls function(k, part) for the elements [begin, end) of a row.
template <typename scalar_t, typename Function>
GENFAST_INLINE void for_vectors(int64_t begin, int64_t end, Function&& function) {
  constexpr int64_t lanes = kLanes<scalar_t>;
  int64_t k = begin;
  for (; k + lanes <= end; k += lanes) function(k, Whole{});
  if (k < end) function(k, First{end - k});
}

// The sum of a row, in double: vectors are added up in short runs first.
template <typename scalar_t>
class RowSum {
 public:
  void add(Vector<scalar_t> value, Whole) {
    run_ += value;
    if (++in_run_ == kRun) flush();
  }
  void add(Vector<scalar_t> value, First first) {
    for (int64_t lane = 0; lane < first.count; ++lane) total_ += static_cast<double>(value[lane]);
  }
  scalar_t total() {
    flush();
    return static_cast<scalar_t>(total_);
  }

 private:
  static constexpr int kRun = 32;  // vectors

  void flush() {
    for (int lane = 0; lane < kLanes<scalar_t>; ++lane) total_ += static_cast<double>(run_[lane]);
    run_ = Vector<scalar_t>{};
    in_run_ = 0;
  }

  Vector<scalar_t> run_{};
  int in_run_ = 0;
  double total_ = 0;
};

}  // namespace
}  // namespace genfast::cpu
