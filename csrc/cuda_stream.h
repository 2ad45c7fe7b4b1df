// The current CUDA stream, without a CUDA build of torch to compile against: the guard interface
// finds the stream at run time, so the same code builds with a CPU wheel.
#pragma once

#include <c10/core/DeviceGuard.h>
#include <c10/core/impl/VirtualGuardImpl.h>

namespace genfast {

class CudaLaunch {
 public:
  explicit CudaLaunch(const c10::Device& device)
      : guard_(device),
        stream_(c10::impl::VirtualGuardImpl(device.type()).getStream(device).native_handle()) {}

  void* stream() const { return stream_; }

 private:
  c10::DeviceGuard guard_;  // kernels launch on the tensors' device, whatever the current one is
  void* stream_;
};

}  // namespace genfast
