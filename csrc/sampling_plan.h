// A Program made ready to run: checked, weights packed, instructions put into groups and lists.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

#include "csrc/sampling_program.h"

namespace genfast::sampling {

struct FreeMemory {
  size_t mapped = 0;  // bytes of a mapping; 0: from the heap
  void operator()(void* data) const;
};

// Zeroed memory in whole cache lines, in huge pages where there is enough of it.
class Memory {
 public:
  Memory() = default;
  explicit Memory(size_t bytes);
  void* data() const { return data_.get(); }
  size_t bytes() const { return bytes_; }

 private:
  using Owner = std::unique_ptr<void, FreeMemory>;
  static Owner map_huge_pages(size_t bytes);

  Owner data_;
  size_t bytes_ = 0;
};

template <typename scalar_t>
struct Kernels {
  int64_t panel_width;
  void (*gemm)(cpu::GemmCall<scalar_t>);
  void (*pointwise)(const cpu::PointwiseCall<scalar_t>&);
  void (*attend_scores)(const cpu::AttendKeys<scalar_t>&);
  scalar_t (*attend_weights)(const cpu::AttendWeights<scalar_t>&);
  void (*attend_values)(const cpu::AttendValues<scalar_t>&);
};

// A read of a grid: the buffers, then the tables. Bounds lie within the grid.
struct Read {
  int32_t grid;
  int64_t start, step, count, dy, dx, top, bottom, left, right;
  double fill;
};

struct Tap {
  Read read;
  int64_t first_k;
  int64_t phase_row, phase_column;
};

// What an Attend sees at other positions than its own, head by head.
struct Sight {
  std::vector<Read> reads;
  std::vector<cpu::AttendPiece> pieces;
  std::vector<int32_t> begins;  // of each head's pieces, and the end
  int64_t size = 0;             // numbers of a head
};

struct Attention {
  Sight keys, values;
  Read bias{};
  int64_t bias_heads = 1;  // heads with a bias of their own, or 1
  int64_t heads = 0, height = 0, width = 0;
  double scale = 1;

  int64_t seen() const { return height * width; }
};

template <typename scalar_t>
struct Instruction {
  Kind kind;
  int32_t out;
  int64_t first, count;
  int32_t rectified = -1;       // of a Gemm: the buffer that gets its results without negative ones
  int64_t rectified_first = 0;  // the first feature there
  std::vector<Tap> taps;
  int64_t K = 0;
  int64_t up = 1, down = 1;
  bool has_initial = false;
  bool copies_initial = false;  // `reads` are joined or strided: copied to `out` first
  bool finite = true;
  bool sparse = false;          // many inputs may be zero, and then no product of theirs counts
  std::vector<Read> reads;      // of the initial value, the operands or the queries
  std::vector<int64_t> begins;  // feature of the result at which each read begins
  const scalar_t* packed = nullptr;  // panels of a Gemm, rows of a Lookup
  const scalar_t* bias = nullptr;
  std::vector<cpu::PointwiseConstant<scalar_t>> constants;
  std::vector<int32_t> read_registers;
  std::vector<cpu::PointwiseStep> steps;
  int32_t result = 0;
  bool maximum = false;
  int64_t outer = 1, size = 1, inner = 1;
  int64_t levels = 0;
  Attention attention;  // of an Attend

  bool writes(int32_t grid) const { return grid == out || grid == rectified; }
  // The first feature of a buffer that it writes.
  int64_t first_in(int32_t grid) const { return grid == out ? first : rectified_first; }
};

// Instructions that follow each other row by row: no row needs another row of the group.
template <typename scalar_t>
struct Group {
  WhenSpec when;
  std::vector<Instruction<scalar_t>> instructions;
  int64_t up = 1;
};

// The size of an axis along which a table does not vary.
constexpr int64_t kEverywhere = int64_t{1} << 60;

// A conditioning table's rows, columns, height and width come with the call.
template <typename scalar_t>
struct Grid {
  int64_t rows, columns, features, stride;  // slots; numbers kept of a position and image
  int64_t height, width;                    // positions that exist
  bool wraps;                               // a buffer: position modulo slots
  int64_t condition = -1;                   // a conditioning table
  const scalar_t* constant = nullptr;       // a constant table
  bool by_image = false;  // an image's positions lie together, for they are read together
};

template <typename scalar_t>
struct Draw {
  int64_t first, count, parameters;
  std::vector<Read> reads;
};

template <typename scalar_t>
struct Plan {
  explicit Plan(const ProgramSpec<scalar_t>& spec);

  int64_t colours, encoded, height, width, span;
  Kernels<scalar_t> kernels;
  int64_t buffer_count;
  std::vector<Grid<scalar_t>> grids;  // buffers, then tables
  // What runs with spans, then what runs after 0, 1, ... draws; and the same cut where that lets
  // several threads share the features of a group.
  std::vector<std::vector<Group<scalar_t>>> lists, team_lists;
  std::vector<Draw<scalar_t>> draws;
  int64_t most_reads = 1;      // of an instruction: taps, operands, ...
  int64_t most_registers = 1;  // of a Pointwise
  int64_t most_levels = 1;     // parameters of a draw
  int64_t most_features = 1;   // of a read
  int64_t most_live = 0;       // inputs of a sparse Gemm
  int64_t most_seen = 0;       // positions of an Attend
  int64_t most_depth = 0;      // numbers of a head, of keys or values
  int64_t most_sights = 0;     // reads of keys or of values
  size_t packed_bytes() const { return memory.bytes(); }

 private:
  Memory memory;
};

}  // namespace genfast::sampling
