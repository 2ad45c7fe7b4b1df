// Threads of one call: started when it begins, joined when it ends, so that a fork, an interpreter
// that exits or a changed number of threads never meets one of them asleep.
#pragma once

#include <atomic>
#include <cstdint>
#include <system_error>
#include <thread>
#include <vector>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace genfast::sampling {

class Barrier {
 public:
  explicit Barrier(int threads) : threads_(threads) {}

  // Returns once all threads have called it. What any wrote before, all see after.
  void wait() {
    if (threads_ == 1) return;
    const uint32_t phase = phase_.load(std::memory_order_acquire);
    if (arrived_.fetch_add(1, std::memory_order_acq_rel) == threads_ - 1) {
      arrived_.store(0, std::memory_order_relaxed);
      phase_.store(phase + 1, std::memory_order_release);
      return;
    }
    // A few microseconds of spinning outlast most waits; after that the core may be needed.
    for (int spin = 0; phase_.load(std::memory_order_acquire) == phase; ++spin) {
      if (spin < kSpins) {
#if defined(__x86_64__)
        _mm_pause();
#endif
      } else {
        std::this_thread::yield();
      }
    }
  }

 private:
  static constexpr int kSpins = 200;
  const int threads_;
  alignas(64) std::atomic<int> arrived_{0};
  alignas(64) std::atomic<uint32_t> phase_{0};
};

// Calls function(member) for 0 .. threads - 1 at the same time; the caller is member 0. Nothing may
// throw in it. Returns false, having called nothing, if the system does not give that many threads.
template <typename Function>
[[nodiscard]] bool run_team(int threads, Function&& function) {
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

}  // namespace genfast::sampling
