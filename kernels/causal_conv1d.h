// One layer of a WaveNet: a dilated causal convolution, a condition, the gate, and two products
// with what leaves the gate, one back to the stream and one to the skips.
//   h = bias + condition + sum over taps of W_j x(t - shift_j),   shift_j = (taps - 1 - j) dilation
//   z = tanh(h_a) sigmoid(h_b)
//   out = x + b_r + W_r z,   skip = b_s + W_s z
#pragma once

#include <cstdint>

#include "kernels/cpu/simd.h"

namespace genfast {

struct CausalConv1dShape {
  int64_t N, T;
  int64_t R, G, S;  // channels of the stream, of the gate's output, of the skip
  int64_t taps, dilation;
  bool residual;  // whether there is an `out`

  int64_t K() const { return taps * R; }                    // inputs of a gate
  int64_t heads() const { return (residual ? R : 0) + S; }  // rows of out, then of skip
};

// All tensors are contiguous. What is absent is null.
template <typename scalar_t>
struct CausalConv1dInputs {
  CausalConv1dShape shape;
  const scalar_t* x;                // [N, R, T]
  const scalar_t* weight;           // [2 G, R, taps]
  const scalar_t* bias;             // [2 G]
  const scalar_t* condition;        // [N, 2 G, T], or [N, 2 G] where condition_step is 0
  int64_t condition_step;           // 1 or 0
  const scalar_t* residual_weight;  // [R, G]
  const scalar_t* residual_bias;    // [R]
  const scalar_t* skip_weight;      // [S, G]
  const scalar_t* skip_bias;        // [S]
};

// The weights in the order in which register tiles read them, which depends on the SIMD level.
template <typename scalar_t>
struct CausalConv1dPacked {
  scalar_t* gates;       // [K, 2 G], a and b of a gate in one tile
  scalar_t* heads;       // [G, heads]: residual and skip; forward only
  scalar_t* heads_back;  // [heads, G]: the transpose; backward only
  scalar_t* gates_back;  // [taps * 2 G, R]: the transpose of each tap; backward only
};

template <typename scalar_t>
struct CausalConv1dOutputs {
  scalar_t* out;   // [N, R, T]
  scalar_t* skip;  // [N, S, T]
};

template <typename scalar_t>
struct CausalConv1dGradients {
  const scalar_t* grad_out;   // [N, R, T]
  const scalar_t* grad_skip;  // [N, S, T]
  scalar_t* grad_x;           // [N, R, T]
  scalar_t* grad_h;           // [N, 2 G, T]
  // Sums over a chunk of tiles: [chunks, 2 G, columns(K)] and [chunks, heads, columns(G)]. The
  // columns of the first are taps, then channels.
  scalar_t* weight_sums;
  scalar_t* head_sums;
  scalar_t* row_sums;  // [tiles, 2 G + heads]: sums of grad_h, grad_out and grad_skip over a tile
  int64_t chunks;
};

namespace cpu {
// The unit of work, in time: what a tile needs fits into the second level cache. Sums are those of
// tiles, and of chunks of tiles, whoever computes them.
constexpr int64_t kCausalConv1dTile = 256;

inline int64_t causal_conv1d_tiles(const CausalConv1dShape& shape) {
  return shape.N * ((shape.T + kCausalConv1dTile - 1) / kCausalConv1dTile);
}

// Columns of a matrix of sums, whole register tiles at every SIMD level.
inline int64_t causal_conv1d_columns(int64_t columns) {
  return (columns + 31) / 32 * 32;
}

// Numbers that one thread needs beside the tensors, for the forward pass, the backward pass, and
// grad_x.
struct CausalConv1dScratch {
  int64_t forward, backward, backward_x;
};

inline CausalConv1dScratch causal_conv1d_scratch(const CausalConv1dShape& shape) {
  constexpr int64_t step = kCausalConv1dTile + 16;
  const int64_t x = causal_conv1d_columns(shape.K()), z = causal_conv1d_columns(shape.G);
  return {(shape.K() + shape.G) * step,
          (x + z + shape.heads() + 2 * shape.G) * step + (x + z + 32) * kCausalConv1dTile,
          shape.taps * 2 * shape.G * step};
}

template <SimdLevel level, typename scalar_t>
void causal_conv1d_pack(const CausalConv1dInputs<scalar_t>& inputs,
                        const CausalConv1dPacked<scalar_t>& packed);
// Tiles [begin, end).
template <SimdLevel level, typename scalar_t>
void causal_conv1d(const CausalConv1dInputs<scalar_t>& inputs,
                   const CausalConv1dPacked<scalar_t>& packed,
                   const CausalConv1dOutputs<scalar_t>& outputs, scalar_t* scratch, int64_t begin,
                   int64_t end);
// Chunks [begin, end): everything but grad_x, which reads grad_h of later tiles.
template <SimdLevel level, typename scalar_t>
void causal_conv1d_backward(const CausalConv1dInputs<scalar_t>& inputs,
                            const CausalConv1dPacked<scalar_t>& packed,
                            const CausalConv1dGradients<scalar_t>& gradients, scalar_t* scratch,
                            int64_t begin, int64_t end);
// Tiles [begin, end) of grad_x.
template <SimdLevel level, typename scalar_t>
void causal_conv1d_backward_x(const CausalConv1dInputs<scalar_t>& inputs,
                              const CausalConv1dPacked<scalar_t>& packed,
                              const CausalConv1dGradients<scalar_t>& gradients, scalar_t* scratch,
                              int64_t begin, int64_t end);
// to[i] = the sum over n of sums[n, i], of matrices [count, size], for i in [begin, end).
template <SimdLevel level, typename scalar_t>
void causal_conv1d_add_up(const scalar_t* sums, int64_t count, int64_t size, scalar_t* to,
                          int64_t begin, int64_t end);
}  // namespace cpu
}  // namespace genfast
