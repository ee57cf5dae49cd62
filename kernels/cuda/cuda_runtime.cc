// Runtime on a GPU, by the CUDA runtime API: the one place that turns its codes into Status.
#include <cuda_runtime_api.h>

#include <chrono>
#include <cstdlib>
#include <string>
#include <thread>

#include "absl/strings/str_cat.h"
#include "kernels/cuda/runtime.h"

namespace phalanx::cuda {
namespace {

absl::Status Error(cudaError_t error, const std::string& what) {
  if (error == cudaSuccess) return absl::OkStatus();
  return absl::InternalError(
      absl::StrCat(what, ": CUDA error ", static_cast<int>(error), ", ", cudaGetErrorString(error)));
}

class GpuRuntime : public Runtime {
 public:
  GpuRuntime() = default;
  ~GpuRuntime() override {
    if (stream_ != nullptr) cudaStreamDestroy(stream_);
  }
  absl::Status Open(const cudaDeviceProp& properties) {
    if (absl::Status s = Error(cudaSetDevice(0), "cudaSetDevice"); !s.ok()) return s;
    if (absl::Status s =
            Error(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking), "cudaStreamCreate");
        !s.ok()) {
      return s;
    }
    size_t free = 0, total = 0;
    if (absl::Status s = Error(cudaMemGetInfo(&free, &total), "cudaMemGetInfo"); !s.ok()) return s;
    info_.name = properties.name;
    // Of both there is machine code; others run what the driver makes of the PTX.
    info_.architecture = absl::StrCat("sm_", properties.major, properties.minor);
    info_.free_bytes = static_cast<int64_t>(free);
    return absl::OkStatus();
  }

  const DeviceInfo& device() const override { return info_; }

  absl::StatusOr<void*> Allocate(int64_t bytes) override {
    if (absl::Status s = Current(); !s.ok()) return s;
    void* data = nullptr;
    const size_t size = bytes == 0 ? 1 : static_cast<size_t>(bytes);
    if (cudaMalloc(&data, size) != cudaSuccess) {
      cudaGetLastError();  // the failure is not the next call's
      return absl::ResourceExhaustedError(
          absl::StrCat("Allocate: this device cannot give ", bytes, " bytes"));
    }
    if (absl::Status s = Error(cudaMemsetAsync(data, 0, size, stream_), "cudaMemsetAsync"); !s.ok()) {
      cudaFree(data);
      return s;
    }
    return data;
  }
  // cudaFree waits for what was enqueued.
  void Free(void* data) override {
    if (Current().ok()) cudaFree(data);
  }
  absl::Status Copy(void* to, const void* from, int64_t bytes, CopyKind kind) override {
    if (absl::Status s = Current(); !s.ok()) return s;
    const cudaMemcpyKind kinds[] = {cudaMemcpyHostToDevice, cudaMemcpyDeviceToHost, cudaMemcpyDeviceToDevice};
    return Error(
        cudaMemcpyAsync(to, from, static_cast<size_t>(bytes), kinds[static_cast<int>(kind)], stream_),
        "cudaMemcpyAsync");
  }
  // Asks instead of waiting, so that a device that does not answer has a deadline, too.
  absl::Status Synchronize(int64_t timeout_ms) override {
    if (absl::Status s = Current(); !s.ok()) return s;
    const auto end = std::chrono::steady_clock::now() + std::chrono::milliseconds(timeout_ms);
    constexpr int kSpins = 20000;
    for (int i = 0;; ++i) {
      const cudaError_t state = cudaStreamQuery(stream_);
      if (state != cudaErrorNotReady) return Error(state, "the device's queue");
      if (i < kSpins) continue;
      if (std::chrono::steady_clock::now() > end) {
        return absl::DeadlineExceededError(
            absl::StrCat("the device's queue is not empty after ", timeout_ms, " ms"));
      }
      std::this_thread::sleep_for(std::chrono::microseconds(50));
    }
  }
  void* stream() override { return stream_; }
  absl::Status ToStatus(int error, const char* what) override {
    return Error(static_cast<cudaError_t>(error), what);
  }

 private:
  // The device is a thread's own state, and Ops may be used by one thread after another.
  absl::Status Current() { return Error(cudaSetDevice(0), "cudaSetDevice"); }

  DeviceInfo info_;
  cudaStream_t stream_ = nullptr;
};

}  // namespace

absl::StatusOr<std::unique_ptr<Runtime>> CreateCudaRuntime() {
  int devices = 0, driver = 0, runtime = 0;
  cudaRuntimeGetVersion(&runtime);
  cudaDriverGetVersion(&driver);
  const cudaError_t counted = cudaGetDeviceCount(&devices);
  if (driver == 0) {
    return absl::FailedPreconditionError(
        absl::StrCat("no NVIDIA driver is installed here (this program was built for CUDA ", runtime / 1000,
                     ".", runtime % 1000 / 10, ")"));
  }
  if (counted != cudaSuccess || devices == 0) {
    return absl::FailedPreconditionError(
        absl::StrCat("no CUDA device can be used: ", cudaGetErrorString(counted), " (driver for CUDA ",
                     driver / 1000, ".", driver % 1000 / 10, ", built for ", runtime / 1000, ".",
                     runtime % 1000 / 10, ", ", devices, " devices)"));
  }
  cudaDeviceProp properties;
  if (absl::Status s = Error(cudaGetDeviceProperties(&properties, 0), "cudaGetDeviceProperties"); !s.ok()) {
    return s;
  }
  if (properties.major < 8) {
    return absl::FailedPreconditionError(absl::StrCat("device 0 is ", properties.name,
                                                      " of compute capability ", properties.major, ".",
                                                      properties.minor, ", must be at least 8.0"));
  }
  auto gpu = std::make_unique<GpuRuntime>();
  if (absl::Status s = gpu->Open(properties); !s.ok()) return s;
  return gpu;
}

}  // namespace phalanx::cuda
