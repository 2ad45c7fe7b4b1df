// Who computes what: how a number of threads shares the groups of a plan.
#pragma once

#include <cstdint>
#include <vector>

#include "csrc/sampling_plan.h"

namespace genfast::sampling {

// For tests: share work between threads wherever that is possible, however little it is. Returns
// what was set before.
bool share_everything(bool on);
bool sharing_everything();

enum class Split {
  kSolo,      // one thread does it all
  kFeatures,  // each thread has its own features, so that weights stay in its core's cache
  kRows,      // each thread has its own rows
};

// A thread's part of an instruction.
struct Share {
  std::vector<int32_t> panels;  // of a Gemm
  int64_t begin, end;           // features of a Pointwise, heads of an Attend
};

template <typename scalar_t>
struct Assignment {
  const Group<scalar_t>* group;
  Split split;
  int64_t last_conflict;  // the last group of the list that must be finished before, or -1
  std::vector<Share>
      shares;  // [thread][instruction]; one thread's where the split is not by features
};

template <typename scalar_t>
struct Arrangement {
  int threads;
  std::vector<std::vector<Assignment<scalar_t>>> lists;  // as in Plan
  // For each list and row of the scan, the assignments that compute something there, in order.
  std::vector<std::vector<std::vector<int32_t>>> rows;
};

// For a team of threads that works through one block of n images together.
template <typename scalar_t>
Arrangement<scalar_t> arrange(const Plan<scalar_t>& plan, int64_t n, int threads);

// How many of the threads compute n images soonest as a team; 1 where threads with images of their
// own are quicker.
template <typename scalar_t>
int team_size(const Plan<scalar_t>& plan, int64_t n, int threads);

// Nanoseconds that one thread takes for a whole image of each of n images, roughly.
template <typename scalar_t>
double estimate(const Plan<scalar_t>& plan, int64_t n);

}  // namespace genfast::sampling
