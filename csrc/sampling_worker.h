// One thread's walk through a plan: where rows lie, and the calls of the kernels.
#pragma once

#include <cstdint>
#include <vector>

#include "csrc/sampling_arrange.h"
#include "csrc/sampling_team.h"

namespace genfast::sampling {

// What a call gives for a conditioning table: [images, rows, columns, features].
template <typename scalar_t>
struct Condition {
  const scalar_t* data;
  int64_t images, rows, columns;  // 1 where it does not vary
};

// Some images of a run, with caches of their own.
template <typename scalar_t>
struct Block {
  struct Store {
    scalar_t* base;
    int64_t row_stride, column_stride, image_stride;
    int64_t rows, columns;
    int64_t height, width;  // positions beyond are outside, whatever a read says
  };
  int64_t first, n;           // images of the run
  std::vector<Store> stores;  // as Plan::grids
  Memory memory;

  Block(const Plan<scalar_t>& plan, int64_t first, int64_t n,
        const std::vector<Condition<scalar_t>>& conditions);

  // The first feature that `read` sees from (i, j) for image 0; null outside.
  const scalar_t* at(const Read& read, int64_t i, int64_t j) const {
    const int64_t row = i + read.dy, column = j + read.dx;
    if (row < read.top || row >= read.bottom || column < read.left || column >= read.right) {
      return nullptr;
    }
    const Store& store = stores[static_cast<size_t>(read.grid)];
    if (row >= store.height || column >= store.width) return nullptr;
    return store.base + slot(row, store.rows) * store.row_stride +
           slot(column, store.columns) * store.column_stride + read.start;
  }

  scalar_t* out(int32_t grid, int64_t first_feature, int64_t i, int64_t j) const {
    const Store& store = stores[static_cast<size_t>(grid)];
    return store.base + slot(i, store.rows) * store.row_stride +
           slot(j, store.columns) * store.column_stride + first_feature;
  }

  // Whether all parameters of a draw at (r, c) are inside.
  bool has(const Draw<scalar_t>& draw, int64_t r, int64_t c) const {
    for (const Read& read : draw.reads) {
      if (at(read, r, c) == nullptr) return false;
    }
    return true;
  }

  int64_t image_stride(int32_t grid) const {
    return stores[static_cast<size_t>(grid)].image_stride;
  }

 private:
  void fill(const Store& store, const Grid<scalar_t>& grid, const Condition<scalar_t>& given) const;

  static int64_t slot(int64_t position, int64_t slots) {
    if (slots == 1) return 0;  // also where a constant is read beyond its one position
    if (position < slots) return position;
    return static_cast<uint32_t>(position) % static_cast<uint32_t>(slots);
  }
};

// Scratch of a thread for attention: of kAttendHeads heads at a time.
template <typename scalar_t>
struct Attending {
  explicit Attending(const Plan<scalar_t>& plan);

  int64_t seen;   // numbers between the scores of two heads
  int64_t depth;  // numbers between the queries or the totals of two heads
  Memory numbers;
  scalar_t *scores, *queries, *totals, *key;
  std::vector<cpu::AttendPlace<scalar_t>> places, next;
  std::vector<scalar_t> fills;
  std::vector<cpu::AttendRun> runs;
};

template <typename scalar_t>
class Worker {
 public:
  Worker(const Plan<scalar_t>& plan, const Arrangement<scalar_t>& arrangement, int member,
         Barrier* barrier);

  // Runs list 0 for columns c0 .. c1 - 1 of scan row r, and with column 0 for those before the
  // scan; or list 1 + after for the pixel (r, c0).
  void run_list(const Block<scalar_t>& block, size_t list, int64_t r, int64_t c0, int64_t c1);

  // At the start of a call: everything of the calls before is finished.
  void start() {
    pending_all_ = pending_solo_ = false;
    bad_index_ = false;
  }

  // Between lists: what `all` of the team write next, or member 0 alone, may touch anything.
  void settle(bool all);
  void wrote(bool all);

  // Parameters of a draw for image b of the block: fill where they are outside. They may lie in
  // scratch until the next call.
  const scalar_t* parameters(const Block<scalar_t>& block, const Draw<scalar_t>& draw, int64_t r,
                             int64_t c, int64_t b);

  double* doubles() { return static_cast<double*>(doubles_.data()); }
  int member() const { return member_; }
  int threads() const { return arrangement_.threads; }
  bool bad_index() const { return bad_index_; }

 private:
  struct Chunk {
    int64_t i, j0, j_step, begin, end;  // rows begin .. end - 1, counted position by position
  };

  void run_group(const Block<scalar_t>& block, const Assignment<scalar_t>& assignment, int64_t i,
                 int64_t j_first, int64_t j_last);
  void run_rows(const Block<scalar_t>& block, const Assignment<scalar_t>& assignment,
                const Chunk& chunk);
  void gemm(const Block<scalar_t>& block, const Instruction<scalar_t>& instruction,
            const Share& share, const Chunk& chunk);
  void pointwise(const Block<scalar_t>& block, const Instruction<scalar_t>& instruction,
                 const Share& share, const Chunk& chunk);
  void reduce(const Block<scalar_t>& block, const Instruction<scalar_t>& instruction,
              const Chunk& chunk);
  void lookup(const Block<scalar_t>& block, const Instruction<scalar_t>& instruction,
              const Chunk& chunk);
  void attend(const Block<scalar_t>& block, const Instruction<scalar_t>& instruction,
              const Share& share, const Chunk& chunk);
  // Some heads, whose queries are joined, of image b; all see what `runs` says.
  void attend_heads(const Block<scalar_t>& block, const Attention& attention, int64_t b,
                    int64_t head, int64_t heads, const scalar_t* queries, const scalar_t* bias,
                    int64_t bias_step, scalar_t* out);

  // Pointers of the chunk's rows; returns whether any row lies inside.
  bool point(const Block<scalar_t>& block, const Read& read, const Chunk& chunk, int64_t up,
             int64_t down, const scalar_t** to);
  void point_out(const Block<scalar_t>& block, int32_t grid, int64_t first, const Chunk& chunk,
                 scalar_t** to);
  // The joined features of `reads` at row q of the chunk's pointers, into `to`.
  void join(const Instruction<scalar_t>& instruction, int64_t q, scalar_t* to) const;
  const scalar_t** pointers(size_t read) { return pointers_.data() + read * cpu::kSamplingRows; }

  const Plan<scalar_t>& plan_;
  const Arrangement<scalar_t>& arrangement_;
  const int member_;
  Barrier* const barrier_;
  bool pending_all_ = false, pending_solo_ = false;
  bool bad_index_ = false;
  std::vector<const scalar_t*> pointers_;
  std::vector<scalar_t*> out_, rectified_;
  std::vector<cpu::GemmTap<scalar_t>> taps_;
  std::vector<cpu::PointwiseRead<scalar_t>> reads_;
  std::vector<cpu::LiveInput<scalar_t>> live_;
  Memory zeros_, registers_, joined_, doubles_;
  Attending<scalar_t> attending_;
};

}  // namespace genfast::sampling
