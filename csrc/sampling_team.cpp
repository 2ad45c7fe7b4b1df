#include "csrc/sampling_team.h"

#include <pthread.h>

namespace genfast::sampling {
namespace {

std::atomic<bool> forked{false};

[[maybe_unused]] const int registered =
    pthread_atfork(nullptr, nullptr, [] { forked.store(true, std::memory_order_relaxed); });

}  // namespace

bool in_forked_child() {
  return forked.load(std::memory_order_relaxed);
}

}  // namespace genfast::sampling
