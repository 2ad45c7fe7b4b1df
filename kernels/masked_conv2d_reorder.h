// Images between contiguous and channels last: for each, a matrix of channels and pixels to
// transpose.
#pragma once

#include <cstdint>

#include "kernels/cpu/simd.h"

namespace genfast::cpu {

// Rows first .. last - 1 of `from` [rows, columns] become columns of `to` [columns, rows]. The bits
// are moved, whatever they mean: number_t is float, double or, of any two bytes, uint16_t.
template <SimdLevel level, typename number_t>
void transpose_rows(const number_t* from, number_t* to, int64_t rows, int64_t columns,
                    int64_t first, int64_t last);

}  // namespace genfast::cpu
