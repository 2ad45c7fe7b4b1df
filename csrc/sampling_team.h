// The threads of one call. Torch's ops leave OpenMP's threads spinning for a while, and any thread
// beside them would have to fight for a core: where OpenMP can give a team, its threads are taken.
// Elsewhere they are started when a call begins and joined when it ends, so that a fork never meets
// one of them asleep.
#pragma once

#include <atomic>
#include <cstdint>
#include <system_error>
#include <thread>
#include <vector>

#if defined(_OPENMP)
#include <omp.h>
#endif
#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace genfast::sampling {

// Each member counts in a cache line of its own and reads the others': quicker than one counter
// that goes from core to core.
class Barrier {
 public:
  explicit Barrier(int threads) : counts_(static_cast<size_t>(threads)) {}

  // Returns once all members have called it. What any wrote before, all see after.
  void wait(int member) {
    std::atomic<uint32_t>& own = counts_[static_cast<size_t>(member)].value;
    const uint32_t phase = own.load(std::memory_order_relaxed) + 1;
    own.store(phase, std::memory_order_release);
    for (const Count& other : counts_) {
      // One that is ahead by a phase has been here too.
      for (int spin = 0; other.value.load(std::memory_order_acquire) - phase > kHalf; ++spin) {
        pause(spin);
      }
    }
  }

 private:
  struct alignas(64) Count {
    std::atomic<uint32_t> value{0};
  };
  static constexpr uint32_t kHalf = uint32_t{1} << 31;
  static constexpr int kSpins = 200;

  // A few microseconds of spinning outlast most waits; after that the core may be needed.
  static void pause(int spin) {
    if (spin >= kSpins) {
      std::this_thread::yield();
      return;
    }
#if defined(__x86_64__)
    _mm_pause();
#endif
  }

  std::vector<Count> counts_;
};

// Whether this process was forked since this library was loaded: OpenMP's threads do not exist in
// the child. Of a fork before that nothing is known; torch's own loops hang there too.
bool in_forked_child();

// Starts a thread for each member but the caller, and joins them.
template <typename Function>
bool run_started_team(int threads, Function&& function) {
  enum : int { kWait, kGo, kStop };
  std::atomic<int> start{kWait};
  std::vector<std::thread> others;
  others.reserve(static_cast<size_t>(threads));
  try {
    for (int member = 1; member < threads; ++member) {
      others.emplace_back([&function, &start, member] {
        // A team may wait for each other, so none begins before all are there.
        start.wait(kWait, std::memory_order_acquire);
        if (start.load(std::memory_order_acquire) == kGo) function(member);
      });
    }
    start.store(kGo, std::memory_order_release);
  } catch (const std::system_error&) {
    start.store(kStop, std::memory_order_release);
  }
  start.notify_all();
  const bool complete = start.load(std::memory_order_relaxed) == kGo;
  if (complete) function(0);
  for (std::thread& other : others) other.join();
  return complete;
}

#if defined(_OPENMP)
// Takes OpenMP's threads. Returns false, having called nothing, if they are too few.
template <typename Function>
bool run_openmp_team(int threads, Function&& function) {
  bool complete = false;
  // No num_threads clause: it makes OpenMP start threads anew where torch asks for another number.
#pragma omp parallel
  {
    if (omp_get_num_threads() >= threads) {
      const int member = omp_get_thread_num();
      if (member == 0) complete = true;
      if (member < threads) function(member);
    }
  }
  return complete;
}
#endif

// Calls function(member) for 0 .. threads - 1 at the same time; the caller is member 0. Nothing may
// throw in it. Returns false, having called nothing, if the system does not give that many threads.
template <typename Function>
[[nodiscard]] bool run_team(int threads, Function&& function) {
  if (threads == 1) {
    function(0);
    return true;
  }
#if defined(_OPENMP)
  const bool there = omp_get_max_threads() >= threads && !omp_in_parallel() && !in_forked_child();
  if (there && run_openmp_team(threads, function)) return true;
#endif
  return run_started_team(threads, function);
}

}  // namespace genfast::sampling
