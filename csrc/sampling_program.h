// A Program (genfast/sampling/program.py) as the engine gets it: the same fields, flat. No torch
// here nor in the rest of the engine's core, so that it can be tested under any sanitizer.
#pragma once

#include <cstdint>
#include <vector>

#include "kernels/sampling.h"

namespace genfast::sampling {

struct BufferSpec {
  int64_t features, height, width, rows, columns;
};

template <typename scalar_t>
struct TableSpec {
  int64_t features;
  int64_t rows = 1, columns = 1;  // of the data: 1 where it does not vary
  std::vector<scalar_t> data;     // [rows, columns, features] of a constant table
  int64_t condition = -1;         // number of a conditioning table
};

struct ReadSpec {
  int64_t source, start, step, count, dy, dx, top, bottom, left, right;
  double fill;
  bool table;
};

struct WhenSpec {
  int64_t height, width;
  bool span;
  int64_t after, row_scale, row_offset, column_scale, column_offset;
  int64_t before = 0;

  bool operator==(const WhenSpec&) const = default;
};

template <typename scalar_t>
struct TapSpec {
  ReadSpec read;
  std::vector<scalar_t> weight;  // [read.count, count]
  int64_t phase_row, phase_column;
};

enum class Kind { kGemm, kPointwise, kReduce, kLookup, kAttend };

// The fields of all kinds of instruction; each uses its own.
template <typename scalar_t>
struct InstructionSpec {
  Kind kind;
  int64_t out, first, count;
  WhenSpec when;
  std::vector<TapSpec<scalar_t>> taps;
  std::vector<scalar_t> bias;
  std::vector<ReadSpec> initial;
  int64_t up = 1, down = 1;
  std::vector<ReadSpec> reads;  // of a Pointwise, a Reduce, (one) a Lookup; an Attend's queries
  std::vector<double> constants;
  struct Step {
    cpu::PointwiseOp op;
    std::vector<int64_t> args;
  };
  std::vector<Step> steps;
  bool maximum = false;  // of a Reduce: else the sum
  int64_t outer = 1, size = 1, inner = 1;
  std::vector<scalar_t> weight;  // of a Lookup: [levels, count]
  int64_t levels = 0;
  std::vector<ReadSpec> keys, values;  // of an Attend
  ReadSpec score_bias{};
  int64_t heads = 1, seen_height = 1, seen_width = 1;
  double scale = 1;
};

struct DrawSpec {
  int64_t first, count;
  std::vector<ReadSpec> reads;
};

template <typename scalar_t>
struct ProgramSpec {
  int64_t colours, encoded, height, width, span;
  std::vector<BufferSpec> buffers;
  std::vector<TableSpec<scalar_t>> tables;
  std::vector<InstructionSpec<scalar_t>> instructions;
  std::vector<DrawSpec> draws;
};

}  // namespace genfast::sampling
