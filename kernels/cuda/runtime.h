// The few services of a device that CudaOps needs besides kernels, with two implementations: the CUDA runtime
// and the emulator.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "kernels/cuda/peers.h"
#include "kernels/ops.h"

namespace phalanx::cuda {

struct DeviceInfo {
  std::string name;          // for people
  std::string architecture;  // "sm_90"
  int multiprocessors = 0;
  bool emulated = false;
  int64_t free_bytes = 0;  // of its memory; 0: the host's
};

// Work that was recorded, to be launched as one. Ends before its Runtime.
class Graph {
 public:
  virtual ~Graph() = default;
  virtual int64_t bytes() const = 0;  // of device memory
};

class Runtime {
 public:
  virtual ~Runtime() = default;
  virtual const DeviceInfo& device() const = 0;
  // Zeroed, 256-byte aligned; at least one byte can be addressed. ResourceExhausted naming the size.
  virtual absl::StatusOr<void*> Allocate(int64_t bytes) = 0;
  // After all work that was enqueued.
  virtual void Free(void* data) = 0;
  // Enqueued. Host memory may be changed when a copy to the device returns; it is filled when a Wait for a
  // later mark, or Synchronize, returns. Neither waits for the queue unless it is of megabytes.
  virtual absl::Status Copy(void* to, const void* from, int64_t bytes, CopyKind kind) = 0;
  // A place in the queue, and waiting until all before it is done: it asks again and again, so that a device
  // that does not answer has a deadline, too.
  virtual absl::StatusOr<int64_t> Mark() = 0;
  virtual absl::Status Wait(int64_t mark, int64_t timeout_ms) = 0;
  absl::Status Synchronize(int64_t timeout_ms) {
    absl::StatusOr<int64_t> mark = Mark();
    return mark.ok() ? Wait(*mark, timeout_ms) : mark.status();
  }
  // Between these two, what is enqueued is recorded and does not run; memory cannot be had or given back, nor
  // copied from or to the host, nor anything be waited for (FailedPrecondition). FinishRecording ends it in
  // any case.
  virtual absl::Status StartRecording() = 0;
  virtual absl::StatusOr<std::unique_ptr<Graph>> FinishRecording() = 0;
  virtual absl::Status Launch(Graph* graph) = 0;
  virtual void* stream() = 0;  // as launchers take it
  // See Ops::Time.
  virtual absl::StatusOr<double> Time(const std::function<absl::Status()>& work) = 0;
  virtual PeerServices& peers() = 0;
  // Of a launcher's result; `what` names the kernel.
  virtual absl::Status ToStatus(int error, const char* what) = 0;
};

// The emulator of one device. Its memory is the host's, each buffer ending before a page that cannot be
// touched. What is enqueued runs at once or, where `lazy`, when it is waited for.
std::unique_ptr<Runtime> CreateEmulatedRuntime(bool lazy = false);
// The device that `options` names. FailedPrecondition saying what is missing where there is no driver or no
// such device, or none that the kernels were built for.
absl::StatusOr<std::unique_ptr<Runtime>> CreateCudaRuntime(const OpsOptions& options);

namespace lt {
struct Table;
}

// options.rung is for the caller to have understood. Unimplemented for Compute::kFp32. `cublaslt` is for mode
// fast; null: the library that is found here, on the emulator none.
absl::StatusOr<std::unique_ptr<Ops>> CreateCudaOps(std::unique_ptr<Runtime> runtime,
                                                   const OpsOptions& options,
                                                   const lt::Table* cublaslt = nullptr);

}  // namespace phalanx::cuda
