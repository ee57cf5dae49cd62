#include "kernels/cuda/cuda_peers.h"

#include <cuda_runtime_api.h>
#include <unistd.h>

#include <chrono>
#include <cstring>
#include <thread>

#include "absl/strings/str_cat.h"

namespace phalanx::cuda {
namespace {

// Allocations of this size and more are not parts of others, so that a handle is of nothing else.
constexpr size_t kShareUnit = size_t{2} << 20;
constexpr std::chrono::seconds kClearTimeout{30};

absl::Status Error(cudaError_t error, const char* what) {
  if (error == cudaSuccess) return absl::OkStatus();
  cudaGetLastError();  // the failure is not the next call's
  return absl::InternalError(
      absl::StrCat(what, ": CUDA error ", static_cast<int>(error), ", ", cudaGetErrorString(error)));
}

class GpuPeers : public PeerServices {
 public:
  explicit GpuPeers(int device) : device_(device) {
    char name[32] = {};
    if (cudaDeviceGetPCIBusId(name, sizeof(name), device) == cudaSuccess) name_ = name;
  }
  std::string device_name() const override { return name_; }

  absl::StatusOr<void*> AllocateMapped(int64_t bytes) override {
    if (absl::Status s = Current(); !s.ok()) return s;
    void* data = nullptr;
    const cudaError_t error =
        cudaHostAlloc(&data, static_cast<size_t>(bytes), cudaHostAllocMapped | cudaHostAllocPortable);
    if (error != cudaSuccess) return Error(error, "cudaHostAlloc");
    std::memset(data, 0, static_cast<size_t>(bytes));
    return data;
  }
  void FreeMapped(void* data) override {
    if (Current().ok()) cudaFreeHost(data);
  }

  absl::StatusOr<void*> AllocateShared(int64_t bytes) override {
    if (absl::Status s = Current(); !s.ok()) return s;
    const size_t size = (static_cast<size_t>(bytes) + kShareUnit) / kShareUnit * kShareUnit;
    void* data = nullptr;
    if (cudaMalloc(&data, size) != cudaSuccess) {
      cudaGetLastError();
      return absl::ResourceExhaustedError(
          absl::StrCat("this device cannot give ", bytes, " bytes for exchanges with its peers"));
    }
    // Before a peer can see it.
    if (absl::Status s = Clear(data, size); !s.ok()) {
      cudaFree(data);
      return s;
    }
    return data;
  }
  void FreeShared(void* data) override {
    if (Current().ok()) cudaFree(data);
  }
  absl::StatusOr<std::string> Export(void* data) override {
    if (absl::Status s = Current(); !s.ok()) return s;
    static_assert(sizeof(cudaIpcMemHandle_t) <= kHandleBytes);
    cudaIpcMemHandle_t handle;
    if (absl::Status s = Error(cudaIpcGetMemHandle(&handle, data), "cudaIpcGetMemHandle"); !s.ok()) {
      return absl::FailedPreconditionError(s.message());
    }
    return std::string(reinterpret_cast<const char*>(&handle), sizeof(handle));
  }
  absl::StatusOr<void*> Import(const std::string& text) override {
    if (absl::Status s = Current(); !s.ok()) return s;
    cudaIpcMemHandle_t handle;
    if (text.size() < sizeof(handle)) return absl::InvalidArgumentError("a handle of too few bytes");
    std::memcpy(&handle, text.data(), sizeof(handle));
    void* data = nullptr;
    const cudaError_t error = cudaIpcOpenMemHandle(&data, handle, cudaIpcMemLazyEnablePeerAccess);
    if (absl::Status s = Error(error, "cudaIpcOpenMemHandle"); !s.ok()) {
      return absl::FailedPreconditionError(s.message());
    }
    return data;
  }
  void CloseImport(void* data) override {
    if (Current().ok()) cudaIpcCloseMemHandle(data);
  }

  absl::StatusOr<void*> CreateEvent() override {
    if (absl::Status s = Current(); !s.ok()) return s;
    cudaEvent_t event = nullptr;
    if (absl::Status s = Error(cudaEventCreateWithFlags(&event, cudaEventDisableTiming), "cudaEventCreate");
        !s.ok()) {
      return s;
    }
    return static_cast<void*>(event);
  }
  void DestroyEvent(void* event) override {
    if (event != nullptr && Current().ok()) cudaEventDestroy(static_cast<cudaEvent_t>(event));
  }
  absl::Status Record(void* event, void* stream) override {
    if (absl::Status s = Current(); !s.ok()) return s;
    return Error(cudaEventRecord(static_cast<cudaEvent_t>(event), static_cast<cudaStream_t>(stream)),
                 "cudaEventRecord");
  }
  absl::Status Follow(void* event, void* stream) override {
    if (absl::Status s = Current(); !s.ok()) return s;
    return Error(cudaStreamWaitEvent(static_cast<cudaStream_t>(stream), static_cast<cudaEvent_t>(event), 0),
                 "cudaStreamWaitEvent");
  }
  absl::StatusOr<bool> IsDone(void* event) override {
    if (absl::Status s = Current(); !s.ok()) return s;
    const cudaError_t state = cudaEventQuery(static_cast<cudaEvent_t>(event));
    if (state == cudaErrorNotReady) return false;
    if (absl::Status s = Error(state, "the device's queue"); !s.ok()) return s;
    return true;
  }

 private:
  // Zeroes memory, on a queue of its own, and waits for that.
  static absl::Status Clear(void* data, size_t size) {
    cudaStream_t stream = nullptr;
    cudaError_t error = cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking);
    if (error != cudaSuccess) return Error(error, "cudaStreamCreate");
    error = cudaMemsetAsync(data, 0, size, stream);
    const auto deadline = std::chrono::steady_clock::now() + kClearTimeout;
    while (error == cudaSuccess && (error = cudaStreamQuery(stream)) == cudaErrorNotReady &&
           std::chrono::steady_clock::now() < deadline) {
      error = cudaSuccess;
      std::this_thread::sleep_for(std::chrono::microseconds(100));
    }
    cudaStreamDestroy(stream);
    if (error != cudaErrorNotReady) return Error(error, "cudaMemset");
    return absl::DeadlineExceededError(
        absl::StrCat("the device has not cleared ", size, " bytes in ", kClearTimeout.count(), " s"));
  }
  absl::Status Current() { return Error(cudaSetDevice(device_), "cudaSetDevice"); }

  const int device_;
  std::string name_;
};

}  // namespace

std::unique_ptr<PeerServices> CreateGpuPeers(int device) { return std::make_unique<GpuPeers>(device); }

}  // namespace phalanx::cuda
