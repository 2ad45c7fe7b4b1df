// The Python module genfast._C: facts about this build, and the sampling engine, which has state.
// Ops do not pass through here; they reach Python through the dispatcher, as torch.ops.genfast.*.
#include <ATen/Parallel.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>
#include <torch/csrc/utils/pybind.h>

#include "csrc/fingerprint.h"
#include "csrc/sampling_engine.h"
#include "kernels/cpu/simd.h"

namespace py = pybind11;

namespace {

py::dict build_info() {
  py::dict info;
  info["torch"] = GENFAST_TORCH_VERSION;
  info["compiler"] = GENFAST_COMPILER;
#if defined(INTRA_OP_PARALLEL)
  info["threads"] = true;
#else
  info["threads"] = false;  // without OpenMP at::parallel_for is a plain loop
#endif
#if defined(GENFAST_WITH_CUDA)
  info["cuda"] = GENFAST_CUDA_VERSION;
  info["cuda_archs"] = GENFAST_CUDA_ARCH_LIST;
#else
  info["cuda"] = py::none();
  info["cuda_archs"] = py::none();
#endif
  return info;
}

}  // namespace

PYBIND11_MODULE(_C, m) {
  using genfast::cpu::SimdLevel;
  m.def("build_info", &build_info, "What this extension was built from and for.");
  m.def(
      "simd_level", [] { return genfast::cpu::simd_level_name(genfast::cpu::simd_level()); },
      "The SIMD level in use: baseline, avx2 or avx512.");
  m.def(
      "set_simd_level",
      [](const std::string& name) {
        for (const SimdLevel level : {SimdLevel::kBaseline, SimdLevel::kAvx2, SimdLevel::kAvx512}) {
          if (name == genfast::cpu::simd_level_name(level)) {
            return genfast::cpu::set_simd_level(level);
          }
        }
        return false;
      },
      "Force a SIMD level (for tests). Returns whether this machine has it.");
  m.def("hash_bits", &genfast::hash_bits, "A hash of CPU tensors: dtypes, sizes and bits.",
        py::call_guard<py::gil_scoped_release>());
  genfast::sampling::bind_engine(m);
}
