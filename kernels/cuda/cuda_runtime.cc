// Runtime on a GPU, by the CUDA runtime API: the one place that turns its codes into Status.
#include <cuda_runtime_api.h>
#include <unistd.h>

#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "absl/strings/str_cat.h"
#include "kernels/cuda/cuda_peers.h"
#include "kernels/cuda/runtime.h"

namespace phalanx::cuda {
namespace {

absl::Status Error(cudaError_t error, const std::string& what) {
  if (error == cudaSuccess) return absl::OkStatus();
  return absl::InternalError(
      absl::StrCat(what, ": CUDA error ", static_cast<int>(error), ", ", cudaGetErrorString(error)));
}

// Copies of up to this many bytes go through pinned memory, two parts of it in turn.
constexpr int64_t kPinnedBytes = int64_t{2} << 20;
// Marks whose own events are kept; of older ones a later event is waited for.
constexpr int64_t kEvents = 64;
constexpr int64_t kStagingTimeoutMs = 60000;

class GpuGraph : public Graph {
 public:
  GpuGraph(cudaGraphExec_t graph, int64_t bytes) : graph_(graph), bytes_(bytes) {}
  ~GpuGraph() override { cudaGraphExecDestroy(graph_); }
  int64_t bytes() const override { return bytes_; }
  cudaGraphExec_t get() const { return graph_; }

 private:
  cudaGraphExec_t graph_;
  int64_t bytes_;
};

// After an error of these kinds (a kernel read memory that was a peer's, who died) no call of this process
// reaches the device any more; a process that starts anew does.
void EndIfLost(int device, cudaError_t error) {
  switch (error) {
    case cudaErrorECCUncorrectable:
    case cudaErrorNvlinkUncorrectable:
    case cudaErrorIllegalAddress:
    case cudaErrorLaunchTimeout:
    case cudaErrorHardwareStackError:
    case cudaErrorIllegalInstruction:
    case cudaErrorMisalignedAddress:
    case cudaErrorInvalidAddressSpace:
    case cudaErrorInvalidPc:
    case cudaErrorLaunchFailure:
      std::fprintf(stderr, "phalanx: GPU %d is lost to this process (CUDA error %d, %s); ending it\n", device,
                   static_cast<int>(error), cudaGetErrorString(error));
      std::fflush(stderr);
      _exit(1);
    default:
      break;
  }
}

class GpuRuntime : public Runtime {
 public:
  explicit GpuRuntime(int device) : device_(device), peers_(CreateGpuPeers(device)) {}
  ~GpuRuntime() override {
    for (cudaEvent_t event : events_) {
      if (event != nullptr) cudaEventDestroy(event);
    }
    for (cudaEvent_t event : mark_events_) {
      if (event != nullptr) cudaEventDestroy(event);
    }
    for (cudaEvent_t event : part_free_) {
      if (event != nullptr) cudaEventDestroy(event);
    }
    if (upload_ != nullptr) cudaFreeHost(upload_);
    if (download_ != nullptr) cudaFreeHost(download_);
    if (stream_ != nullptr) cudaStreamDestroy(stream_);
  }
  absl::Status Open(const cudaDeviceProp& properties) {
    if (absl::Status s = Error(cudaSetDevice(device_), "cudaSetDevice"); !s.ok()) return s;
    EndIfLost(device_, cudaFree(nullptr));
    if (absl::Status s =
            Error(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking), "cudaStreamCreate");
        !s.ok()) {
      return s;
    }
    void* pinned[2] = {};
    for (void*& memory : pinned) {
      const size_t size = static_cast<size_t>(&memory == &pinned[0] ? 2 * kPinnedBytes : kPinnedBytes);
      if (absl::Status s = Error(cudaHostAlloc(&memory, size, cudaHostAllocDefault), "cudaHostAlloc");
          !s.ok()) {
        return s;
      }
      (&memory == &pinned[0] ? upload_ : download_) = static_cast<char*>(memory);
    }
    for (auto* event : AllEvents()) {
      if (absl::Status s = Error(cudaEventCreateWithFlags(event, cudaEventDisableTiming), "cudaEventCreate");
          !s.ok()) {
        return s;
      }
    }
    size_t free = 0, total = 0;
    if (absl::Status s = Error(cudaMemGetInfo(&free, &total), "cudaMemGetInfo"); !s.ok()) return s;
    info_.name = properties.name;
    // Of both there is machine code; others run what the driver makes of the PTX.
    info_.architecture = absl::StrCat("sm_", properties.major, properties.minor);
    info_.multiprocessors = properties.multiProcessorCount;
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
    if (kind != CopyKind::kOnDevice && recording_) {
      return absl::FailedPreconditionError("memory copied from or to the host while a graph is recorded");
    }
    if (kind == CopyKind::kToDevice && bytes <= kPinnedBytes) return Upload(to, from, bytes);
    if (kind == CopyKind::kToHost) {
      if (bytes <= kPinnedBytes) return Download(to, from, bytes);
      // Such a copy would wait inside the driver, without a deadline.
      if (absl::Status s = Synchronize(kStagingTimeoutMs); !s.ok()) return s;
    }
    const cudaMemcpyKind kinds[] = {cudaMemcpyHostToDevice, cudaMemcpyDeviceToHost, cudaMemcpyDeviceToDevice};
    return Error(
        cudaMemcpyAsync(to, from, static_cast<size_t>(bytes), kinds[static_cast<int>(kind)], stream_),
        "cudaMemcpyAsync");
  }
  absl::StatusOr<int64_t> Mark() override {
    if (absl::Status s = Current(); !s.ok()) return s;
    if (recording_) return absl::FailedPreconditionError("a place marked while a graph is recorded");
    ++marks_;
    if (absl::Status s = Error(cudaEventRecord(mark_events_[marks_ % kEvents], stream_), "cudaEventRecord");
        !s.ok()) {
      return s;
    }
    return marks_;
  }
  absl::Status Wait(int64_t mark, int64_t timeout_ms) override {
    if (mark > done_) {
      if (absl::Status s = Current(); !s.ok()) return s;
      if (recording_) return absl::FailedPreconditionError("the device waited for while a graph is recorded");
      if (absl::Status s = Poll(mark_events_[mark % kEvents], timeout_ms); !s.ok()) return s;
      done_ = mark;
    }
    // In the order of the copies, which is that of their marks.
    size_t delivered = 0;
    for (; delivered < downloads_.size() && downloads_[delivered].mark <= done_; ++delivered) {
      const PendingCopy& copy = downloads_[delivered];
      std::memcpy(copy.to, copy.from, static_cast<size_t>(copy.bytes));
    }
    downloads_.erase(downloads_.begin(), downloads_.begin() + static_cast<std::ptrdiff_t>(delivered));
    if (downloads_.empty()) download_used_ = 0;
    return absl::OkStatus();
  }
  absl::Status StartRecording() override {
    if (absl::Status s = Current(); !s.ok()) return s;
    if (recording_) return absl::FailedPreconditionError("a graph recorded inside another");
    // Calls of this thread that a graph cannot hold are errors; other threads' are their own.
    if (absl::Status s = Error(cudaStreamBeginCapture(stream_, cudaStreamCaptureModeThreadLocal),
                               "cudaStreamBeginCapture");
        !s.ok()) {
      return s;
    }
    recording_ = true;
    return absl::OkStatus();
  }
  absl::StatusOr<std::unique_ptr<Graph>> FinishRecording() override {
    recording_ = false;
    cudaGraph_t graph = nullptr;
    const cudaError_t ended = cudaStreamEndCapture(stream_, &graph);
    if (ended != cudaSuccess || graph == nullptr) {
      cudaGetLastError();  // the failure is not the next call's
      if (graph != nullptr) cudaGraphDestroy(graph);
      return absl::InternalError(absl::StrCat("cudaStreamEndCapture: CUDA error ", static_cast<int>(ended),
                                              ", ",
                                              ended == cudaSuccess ? "no graph" : cudaGetErrorString(ended)));
    }
    size_t before = 0, after = 0, total = 0;
    cudaMemGetInfo(&before, &total);
    cudaGraphExec_t executable = nullptr;
    cudaError_t made = cudaGraphInstantiate(&executable, graph, 0);
    cudaGraphDestroy(graph);
    if (made == cudaSuccess) made = cudaGraphUpload(executable, stream_);
    if (made != cudaSuccess) {
      cudaGetLastError();
      if (executable != nullptr) cudaGraphExecDestroy(executable);
      return Error(made, "cudaGraphInstantiate");
    }
    cudaMemGetInfo(&after, &total);
    return std::make_unique<GpuGraph>(executable,
                                      before > after ? static_cast<int64_t>(before - after) : int64_t{0});
  }
  absl::Status Launch(Graph* graph) override {
    if (absl::Status s = Current(); !s.ok()) return s;
    return Error(cudaGraphLaunch(static_cast<GpuGraph*>(graph)->get(), stream_), "cudaGraphLaunch");
  }
  absl::StatusOr<double> Time(const std::function<absl::Status()>& work) override {
    constexpr int64_t kTimeoutMs = 600000;
    if (absl::Status s = Synchronize(kTimeoutMs); !s.ok()) return s;
    for (cudaEvent_t& event : events_) {
      if (event != nullptr) continue;
      if (absl::Status s = Error(cudaEventCreate(&event), "cudaEventCreate"); !s.ok()) return s;
    }
    if (absl::Status s = Error(cudaEventRecord(events_[0], stream_), "cudaEventRecord"); !s.ok()) return s;
    if (absl::Status s = work(); !s.ok()) return s;
    if (absl::Status s = Error(cudaEventRecord(events_[1], stream_), "cudaEventRecord"); !s.ok()) return s;
    if (absl::Status s = Synchronize(kTimeoutMs); !s.ok()) return s;
    float milliseconds = 0;
    if (absl::Status s =
            Error(cudaEventElapsedTime(&milliseconds, events_[0], events_[1]), "cudaEventElapsedTime");
        !s.ok()) {
      return s;
    }
    return milliseconds * 1e-3;
  }
  void* stream() override { return stream_; }
  PeerServices& peers() override { return *peers_; }
  absl::Status ToStatus(int error, const char* what) override {
    return Error(static_cast<cudaError_t>(error), what);
  }

 private:
  // The device is a thread's own state, and Ops may be used by one thread after another.
  absl::Status Current() { return Error(cudaSetDevice(device_), "cudaSetDevice"); }

  // Asks instead of waiting, so that a device that does not answer has a deadline, too.
  static absl::Status Poll(cudaEvent_t event, int64_t timeout_ms) {
    const auto end = std::chrono::steady_clock::now() + std::chrono::milliseconds(timeout_ms);
    constexpr int kSpins = 20000;
    for (int i = 0;; ++i) {
      const cudaError_t state = cudaEventQuery(event);
      if (state != cudaErrorNotReady) return Error(state, "the device's queue");
      if (i < kSpins) continue;
      if (std::chrono::steady_clock::now() > end) {
        return absl::DeadlineExceededError(
            absl::StrCat("the device has not done what was enqueued after ", timeout_ms, " ms"));
      }
      std::this_thread::sleep_for(std::chrono::microseconds(50));
    }
  }

  absl::Status Upload(void* to, const void* from, int64_t bytes) {
    if (upload_used_ + bytes > kPinnedBytes) {
      // This part is free again when its copies are done; the other one has had a part's time for that.
      if (absl::Status s = Error(cudaEventRecord(part_free_[part_], stream_), "cudaEventRecord"); !s.ok()) {
        return s;
      }
      part_ ^= 1;
      upload_used_ = 0;
      if (absl::Status s = Poll(part_free_[part_], kStagingTimeoutMs); !s.ok()) return s;
    }
    char* const staged = upload_ + part_ * kPinnedBytes + upload_used_;
    upload_used_ += (bytes + kStagingAlignment - 1) / kStagingAlignment * kStagingAlignment;
    std::memcpy(staged, from, static_cast<size_t>(bytes));
    return Error(cudaMemcpyAsync(to, staged, static_cast<size_t>(bytes), cudaMemcpyHostToDevice, stream_),
                 "cudaMemcpyAsync");
  }

  absl::Status Download(void* to, const void* from, int64_t bytes) {
    if (download_used_ + bytes > kPinnedBytes) {
      if (absl::Status s = Synchronize(kStagingTimeoutMs); !s.ok()) return s;
    }
    char* const staged = download_ + download_used_;
    download_used_ += (bytes + kStagingAlignment - 1) / kStagingAlignment * kStagingAlignment;
    downloads_.push_back({to, staged, bytes, marks_ + 1});
    return Error(cudaMemcpyAsync(staged, from, static_cast<size_t>(bytes), cudaMemcpyDeviceToHost, stream_),
                 "cudaMemcpyAsync");
  }

  std::vector<cudaEvent_t*> AllEvents() {
    std::vector<cudaEvent_t*> all = {&part_free_[0], &part_free_[1]};
    for (cudaEvent_t& event : mark_events_) all.push_back(&event);
    return all;
  }

  static constexpr int64_t kStagingAlignment = 256;
  struct PendingCopy {
    void* to;
    const char* from;
    int64_t bytes;
    int64_t mark;  // the first one behind it
  };

  const int device_;
  const std::unique_ptr<PeerServices> peers_;
  DeviceInfo info_;
  cudaStream_t stream_ = nullptr;
  cudaEvent_t events_[2] = {};  // of Time
  bool recording_ = false;
  cudaEvent_t mark_events_[kEvents] = {};  // of the latest marks, in turn
  int64_t marks_ = 0, done_ = 0;
  char* upload_ = nullptr;  // two parts
  cudaEvent_t part_free_[2] = {};
  int part_ = 0;
  int64_t upload_used_ = 0;  // of the part
  char* download_ = nullptr;
  int64_t download_used_ = 0;
  std::vector<PendingCopy> downloads_;
};

}  // namespace

absl::StatusOr<std::unique_ptr<Runtime>> CreateCudaRuntime(const OpsOptions& options) {
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
  if (options.gpu >= devices) {
    return absl::FailedPreconditionError(absl::StrCat("GPU ", options.gpu,
                                                      " is not there: this process sees ", devices,
                                                      " (CUDA_VISIBLE_DEVICES), from 0"));
  }
  const int device = options.gpu >= 0 ? options.gpu : options.gpu_of_rank % devices;
  cudaDeviceProp properties;
  if (absl::Status s = Error(cudaGetDeviceProperties(&properties, device), "cudaGetDeviceProperties");
      !s.ok()) {
    return s;
  }
  if (properties.major < 8) {
    return absl::FailedPreconditionError(absl::StrCat("device ", device, " is ", properties.name,
                                                      " of compute capability ", properties.major, ".",
                                                      properties.minor, ", must be at least 8.0"));
  }
  auto gpu = std::make_unique<GpuRuntime>(device);
  if (absl::Status s = gpu->Open(properties); !s.ok()) return s;
  return gpu;
}

}  // namespace phalanx::cuda
