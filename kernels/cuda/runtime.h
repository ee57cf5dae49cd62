// The few services of a device that CudaOps needs besides kernels, with two implementations: the CUDA runtime
// and the emulator.
#pragma once

#include <cstdint>
#include <memory>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "kernels/ops.h"

namespace phalanx::cuda {

struct DeviceInfo {
  std::string name;          // for people
  std::string architecture;  // "sm_90"
  bool emulated = false;
  int64_t free_bytes = 0;  // of its memory; 0: the host's
};

class Runtime {
 public:
  virtual ~Runtime() = default;
  virtual const DeviceInfo& device() const = 0;
  // Zeroed, 256-byte aligned; at least one byte can be addressed. ResourceExhausted naming the size.
  virtual absl::StatusOr<void*> Allocate(int64_t bytes) = 0;
  // After all work that was enqueued.
  virtual void Free(void* data) = 0;
  // Enqueued. Host memory may be changed when a copy to the device returns; it is filled after Synchronize.
  virtual absl::Status Copy(void* to, const void* from, int64_t bytes, CopyKind kind) = 0;
  virtual absl::Status Synchronize(int64_t timeout_ms) = 0;
  virtual void* stream() = 0;
  // Of a launcher's result; `what` names the kernel.
  virtual absl::Status ToStatus(int error, const char* what) = 0;
};

// The emulator of one device. Its memory is the host's, each buffer ending before a page that cannot be
// touched.
std::unique_ptr<Runtime> CreateEmulatedRuntime();
// The first device. FailedPrecondition saying what is missing where there is no driver or no device that the
// kernels were built for.
absl::StatusOr<std::unique_ptr<Runtime>> CreateCudaRuntime();

// options.rung is for the caller to have understood. Unimplemented for Compute::kFp32.
absl::StatusOr<std::unique_ptr<Ops>> CreateCudaOps(std::unique_ptr<Runtime> runtime,
                                                   const OpsOptions& options);

}  // namespace phalanx::cuda
