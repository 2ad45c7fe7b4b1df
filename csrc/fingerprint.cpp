// A hash of a tensor's bits, to notice that weights have changed: as fast as they can be read.

#include "csrc/fingerprint.h"

#include "csrc/sampling_team.h"

#include <ATen/Parallel.h>

#include <algorithm>
#include <array>
#include <cstdint>
#include <cstring>
#include <vector>

namespace genfast {
namespace {

constexpr uint64_t kFactor = 0x9E3779B97F4A7C15;  // odd, without pattern
constexpr int64_t kChunk = int64_t{1} << 20;      // bytes: fixed, so threads change nothing
constexpr int64_t kWords = 8;                     // of 8 bytes, side by side to hide latency

// Every step is a bijection of the state, so a change of a single word always shows; the last
// shifts carry the high bits down, which a product alone never does.
uint64_t hash_bytes(const uint8_t* data, int64_t size) {
  std::array<uint64_t, kWords> state;
  for (int64_t lane = 0; lane < kWords; ++lane) state[lane] = kFactor + 2 * lane;
  std::array<uint64_t, kWords> words;
  constexpr int64_t block = kWords * static_cast<int64_t>(sizeof(uint64_t));
  int64_t at = 0;
  const auto mix = [&] {
    for (int64_t lane = 0; lane < kWords; ++lane) {
      state[lane] = (state[lane] ^ words[lane]) * kFactor;
      state[lane] ^= state[lane] >> 32;
    }
  };
  for (; at + block <= size; at += block) {
    std::memcpy(words.data(), data + at, block);
    mix();
  }
  words.fill(0);
  if (at < size) std::memcpy(words.data(), data + at, size - at);
  words[kWords - 1] ^= static_cast<uint64_t>(size);
  mix();
  uint64_t hash = 0;
  for (const uint64_t lane : state) hash = (hash ^ lane) * kFactor ^ (hash >> 32);
  return hash;
}

}  // namespace

int64_t hash_bits(const std::vector<at::Tensor>& tensors) {
  struct Piece {
    const uint8_t* data;
    int64_t size;
  };
  std::vector<at::Tensor> dense;
  std::vector<Piece> pieces;
  int64_t total = 0;           // bytes
  std::vector<int64_t> words;  // what the tensors are, then the hashes of their pieces
  for (const at::Tensor& tensor : tensors) {
    TORCH_CHECK(tensor.device().is_cpu(), "hash_bits: expected a CPU tensor, got ",
                tensor.device());
    words.push_back(static_cast<int64_t>(tensor.scalar_type()));
    words.push_back(tensor.dim());
    words.insert(words.end(), tensor.sizes().begin(), tensor.sizes().end());
    dense.push_back(tensor.contiguous());
    const auto* const bytes = static_cast<const uint8_t*>(dense.back().const_data_ptr());
    const auto size = static_cast<int64_t>(dense.back().nbytes());
    total += size;
    for (int64_t at = 0; at < size; at += kChunk) {
      pieces.push_back({bytes + at, std::min(kChunk, size - at)});
    }
  }
  const size_t first = words.size();
  const auto count = static_cast<int64_t>(pieces.size());
  words.resize(first + pieces.size());
  const auto hash_share = [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      words[first + i] = static_cast<int64_t>(hash_bytes(pieces[i].data, pieces[i].size));
    }
  };
  // A team of the engine's: unlike torch's own loops it works in a forked child too.
  const int threads = static_cast<int>(std::min<int64_t>(at::get_num_threads(), total / kChunk));
  const bool shared = threads > 1 && sampling::run_team(threads, [&](int member) {
                        hash_share(count * member / threads, count * (member + 1) / threads);
                      });
  if (!shared) hash_share(0, count);
  const auto* const all = reinterpret_cast<const uint8_t*>(words.data());
  return static_cast<int64_t>(
      hash_bytes(all, static_cast<int64_t>(words.size() * sizeof(int64_t))));
}

}  // namespace genfast
