#include "kernels/masked_conv2d_reorder.h"

#include <type_traits>

#include "kernels/cpu/matrix_tile.h"

namespace genfast::cpu {

template <SimdLevel level, typename number_t>
void transpose_rows(const number_t* from, number_t* to, int64_t rows, int64_t columns,
                    int64_t first, int64_t last) {
  int64_t row = first;
  if constexpr (std::is_floating_point_v<number_t>) {
    constexpr int64_t lanes = kLanes<number_t>;
    const int64_t whole = columns / lanes * lanes;
    for (; row + lanes <= last; row += lanes) {
      transpose_matrix(from + row * columns, columns, lanes, whole, to + row, rows);
      for (int64_t c = whole; c < columns; ++c) {
        for (int64_t r = row; r < row + lanes; ++r) to[c * rows + r] = from[r * columns + c];
      }
    }
  }
  for (int64_t c = 0; c < columns; ++c) {
    for (int64_t r = row; r < last; ++r) to[c * rows + r] = from[r * columns + c];
  }
}

#define GENFAST_INSTANTIATE(number_t)                                                             \
  template void transpose_rows<GENFAST_SIMD_LEVEL, number_t>(const number_t*, number_t*, int64_t, \
                                                             int64_t, int64_t, int64_t)
GENFAST_INSTANTIATE(float);
GENFAST_INSTANTIATE(double);
GENFAST_INSTANTIATE(uint16_t);

}  // namespace genfast::cpu
