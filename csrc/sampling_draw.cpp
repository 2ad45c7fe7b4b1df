#include "csrc/sampling_draw.h"

#include <algorithm>
#include <string>

namespace genfast::sampling {
namespace {

// Images that make it worthwhile for a team to meet before and after drawing.
constexpr int64_t kTeamDraws = 8;

template <typename scalar_t>
cpu::DrawKernels<scalar_t> kernels_of(cpu::DrawKind kind) {
  return cpu::at_simd_level([kind](auto level) {
    switch (kind) {
      case cpu::DrawKind::kBernoulli:
        return cpu::sampling_bernoulli<level(), scalar_t>();
      case cpu::DrawKind::kLogisticMixture:
        return cpu::sampling_logistic_mixture<level(), scalar_t>();
      case cpu::DrawKind::kGaussian:
        return cpu::sampling_gaussian<level(), scalar_t>();
      case cpu::DrawKind::kCategorical:
        break;
    }
    return cpu::sampling_categorical<level(), scalar_t>();
  });
}

}  // namespace

void Fault::raise() const {
  if (row < 0) return;
  throw NumericsError("sample: expected finite parameters, got NaN or infinity at image=" +
                      std::to_string(image) + ", channel=" + std::to_string(colour) +
                      ", row=" + std::to_string(row) + ", column=" + std::to_string(column));
}

template <typename scalar_t>
Drawer<scalar_t>::Drawer(const Plan<scalar_t>& plan, const DrawJob<scalar_t>& job)
    : plan_(plan),
      job_(job),
      plane_(plan.height * plan.width),
      kernels_(kernels_of<scalar_t>(job.rule.kind)) {
  const cpu::DrawRule& rule = job.rule;
  for (const Draw<scalar_t>& draw : plan.draws) {
    const bool fits = draw.first % rule.count == 0 && draw.count % rule.count == 0 &&
                      draw.parameters == draw.count / rule.count * rule.parameters;
    if (fits) continue;
    throw std::logic_error("sampling run: expected draws of " + std::to_string(rule.count) +
                           " symbols from " + std::to_string(rule.parameters) +
                           " parameters, got a draw of " + std::to_string(draw.count) + " from " +
                           std::to_string(draw.parameters));
  }
}

template <typename scalar_t>
void Drawer<scalar_t>::draw(Worker<scalar_t>& worker, const Block<scalar_t>& block, size_t d,
                            int64_t r, int64_t c, Fault& fault) const {
  const Draw<scalar_t>& draw = plan_.draws[d];
  const cpu::DrawRule& rule = job_.rule;
  const int64_t E = plan_.encoded, pixel = r * plan_.width + c;
  const bool together = worker.threads() > 1 && block.n >= kTeamDraws;
  worker.settle(together);
  int64_t begin = 0, end = block.n;
  if (together) {
    begin = block.n * worker.member() / worker.threads();
    end = block.n * (worker.member() + 1) / worker.threads();
  } else if (worker.member() != 0) {
    end = 0;
  }
  const bool present = block.has(draw, r, c);
  for (int64_t b = begin; b < end; ++b) {
    const int64_t image = block.first + b;
    const scalar_t* parameters = present ? worker.parameters(block, draw, r, c, b) : nullptr;
    for (int64_t first = draw.first; first < draw.first + draw.count; first += rule.count) {
      double symbols[cpu::kMostDrawn];
      if (!draw_symbols(parameters, worker.doubles(), image, first, pixel, symbols)) {
        fault.note({r, c, first, image});
      }
      scalar_t* seen = block.out(0, first * E, r, c) + b * block.image_stride(0);
      for (int64_t k = 0; k < rule.count; ++k) {
        store(symbols[k], index(image, first + k, pixel), seen + k * E);
      }
      if (present) parameters += rule.parameters;
    }
  }
  worker.wrote(together);
}

template <typename scalar_t>
bool Drawer<scalar_t>::draw_symbols(const scalar_t* parameters, double* scratch, int64_t image,
                                    int64_t first, int64_t pixel, double* symbols) const {
  const cpu::DrawRule& rule = job_.rule;
  bool known[cpu::kMostDrawn], all_known = true;
  for (int64_t k = 0; k < rule.count; ++k) {
    known[k] = job_.known_mask != nullptr && job_.known_mask[index(image, first + k, pixel)];
    all_known = all_known && known[k];
  }
  const bool draws = parameters != nullptr && !all_known;
  const cpu::DrawCall<scalar_t> call{parameters, scratch};
  bool valid = true;
  if (draws) {
    const int64_t group = image * (plan_.colours / rule.count) + first / rule.count;
    double uniforms[cpu::kMostUniforms];
    for (int64_t u = 0; u < rule.uniforms; ++u) {
      const int64_t at = (group * rule.uniforms + u) * plane_ + pixel;
      uniforms[u] = static_cast<double>(job_.noise[at]);
    }
    valid = kernels_.draw(rule, call, uniforms, job_.temperature, symbols);
  }
  for (int64_t k = 0; k < rule.count; ++k) {
    const int64_t at = index(image, first + k, pixel);
    if (known[k]) {
      symbols[k] = job_.levels != nullptr ? job_.levels[at] : static_cast<double>(job_.numbers[at]);
    } else if (!draws) {
      symbols[k] = job_.start;
    } else if (!valid) {
      symbols[k] = 0;
    } else if (job_.numbers != nullptr) {
      symbols[k] = static_cast<double>(static_cast<scalar_t>(symbols[k]));
    }
  }
  if (draws && valid && job_.log_probs != nullptr) {
    job_.log_probs[image] += kernels_.log_prob(rule, call, symbols);
  }
  return valid;
}

template <typename scalar_t>
void Drawer<scalar_t>::store(double symbol, int64_t at, scalar_t* seen) const {
  if (job_.levels == nullptr) {
    job_.numbers[at] = seen[0] = static_cast<scalar_t>(symbol);
    return;
  }
  const int64_t level = static_cast<int64_t>(symbol);
  job_.levels[at] = static_cast<int32_t>(level);
  std::copy_n(job_.values + level * plan_.encoded, plan_.encoded, seen);
}

template class Drawer<float>;
template class Drawer<double>;

}  // namespace genfast::sampling
