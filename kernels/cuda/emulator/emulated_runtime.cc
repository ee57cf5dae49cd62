#include <sys/mman.h>

#include <chrono>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <map>
#include <mutex>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "kernels/cuda/emulator/emulated_peers.h"
#include "kernels/cuda/emulator/simt.h"
#include "kernels/cuda/runtime.h"

namespace phalanx::cuda {
namespace {

constexpr size_t kPage = 4096;
constexpr size_t kAlignment = 256;

// All emulated devices' memory. With PHALANX_EMULATED_STRICT in the environment the host cannot touch it but
// by Runtime::Copy: what would be a fault on a device is one here.
class DeviceMemory {
 public:
  static DeviceMemory& Get() {
    static auto& memory = *new DeviceMemory;
    return memory;
  }
  void Add(void* pages, size_t size) {
    const std::lock_guard<std::mutex> lock(mu_);
    pages_[pages] = size;
    mprotect(pages, size, Access());
  }
  void Remove(void* pages) {
    const std::lock_guard<std::mutex> lock(mu_);
    pages_.erase(pages);
  }
  // Around what may touch it.
  void Enter() {
    if (!strict_) return;
    const std::lock_guard<std::mutex> lock(mu_);
    if (inside_++ == 0) Protect();
  }
  void Leave() {
    if (!strict_) return;
    const std::lock_guard<std::mutex> lock(mu_);
    if (--inside_ == 0) Protect();
  }

 private:
  DeviceMemory() : strict_(std::getenv("PHALANX_EMULATED_STRICT") != nullptr) {
    if (strict_) simt::SetAroundLaunches([] { Get().Enter(); }, [] { Get().Leave(); });
  }
  int Access() const { return strict_ && inside_ == 0 ? PROT_NONE : PROT_READ | PROT_WRITE; }
  void Protect() {
    for (const auto& [pages, size] : pages_) mprotect(pages, size, Access());
  }

  const bool strict_;
  std::mutex mu_;
  int inside_ = 0;  // threads
  std::map<void*, size_t> pages_;
};

class EmulatedGraph : public Graph {
 public:
  explicit EmulatedGraph(std::vector<simt::Stream::Work> work)
      : work_(std::make_shared<const std::vector<simt::Stream::Work>>(std::move(work))) {}
  int64_t bytes() const override { return static_cast<int64_t>(work_->size() * sizeof(simt::Stream::Work)); }
  const std::shared_ptr<const std::vector<simt::Stream::Work>>& work() const { return work_; }

 private:
  std::shared_ptr<const std::vector<simt::Stream::Work>> work_;
};

class EmulatedRuntime : public Runtime {
 public:
  explicit EmulatedRuntime(bool lazy) : stream_(lazy) {
    info_.name = "emulated CUDA device (for tests, slow)";
    info_.architecture = "emulated";
    info_.multiprocessors = 16;
    info_.emulated = true;
  }
  ~EmulatedRuntime() override {
    for (const auto& [data, mapping] : mappings_) Unmap(mapping);
  }

  const DeviceInfo& device() const override { return info_; }

  absl::StatusOr<void*> Allocate(int64_t bytes) override {
    if (stream_.recording()) return NotWhileRecording("memory allocated");
    const size_t size = (static_cast<size_t>(bytes) + kAlignment) / kAlignment * kAlignment;
    const size_t pages = (size + kPage - 1) / kPage * kPage;
    void* mapping = bytes > int64_t{1} << 46 ? MAP_FAILED
                                             : mmap(nullptr, pages + kPage, PROT_READ | PROT_WRITE,
                                                    MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (mapping == MAP_FAILED) {
      return absl::ResourceExhaustedError(
          absl::StrCat("Allocate: this device cannot give ", bytes, " bytes"));
    }
    mprotect(static_cast<char*>(mapping) + pages, kPage, PROT_NONE);
    DeviceMemory::Get().Add(mapping, pages);
    void* data = static_cast<char*>(mapping) + pages - size;
    mappings_[data] = {mapping, pages + kPage};
    return data;
  }
  void Free(void* data) override {
    const auto found = mappings_.find(data);
    if (found == mappings_.end()) return;
    stream_.Run(stream_.end());
    Unmap(found->second);
    mappings_.erase(found);
  }
  absl::Status Copy(void* to, const void* from, int64_t bytes, CopyKind kind) override {
    const auto size = static_cast<size_t>(bytes);
    if (kind != CopyKind::kOnDevice && stream_.recording()) {
      return NotWhileRecording("memory copied from or to the host");
    }
    if (kind == CopyKind::kToDevice) {
      std::string copy(static_cast<const char*>(from), size);
      stream_.Enqueue([to, copy = std::move(copy)] { Move(to, copy.data(), copy.size()); });
    } else {
      stream_.Enqueue([=] { Move(to, from, size); });
    }
    return absl::OkStatus();
  }
  absl::StatusOr<int64_t> Mark() override {
    if (stream_.recording()) return NotWhileRecording("a place marked");
    return stream_.end();
  }
  absl::Status Wait(int64_t mark, int64_t) override {
    if (stream_.recording()) return NotWhileRecording("the device waited for");
    stream_.Run(mark);
    return absl::OkStatus();
  }
  absl::Status StartRecording() override {
    if (stream_.recording()) return NotWhileRecording("another recording begun");
    stream_.StartRecording();
    return absl::OkStatus();
  }
  absl::StatusOr<std::unique_ptr<Graph>> FinishRecording() override {
    return std::make_unique<EmulatedGraph>(stream_.FinishRecording());
  }
  absl::Status Launch(Graph* graph) override {
    if (stream_.recording()) return NotWhileRecording("a graph launched");
    for (const simt::Stream::Work& work : *static_cast<EmulatedGraph*>(graph)->work()) stream_.Enqueue(work);
    return absl::OkStatus();
  }
  // The host's clock: what it says is no measure of a device.
  absl::StatusOr<double> Time(const std::function<absl::Status()>& work) override {
    const auto begin = std::chrono::steady_clock::now();
    if (absl::Status s = work(); !s.ok()) return s;
    stream_.Run(stream_.end());
    return std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
  }
  void* stream() override { return &stream_; }
  PeerServices& peers() override { return *peers_; }
  absl::Status ToStatus(int error, const char* what) override {
    if (error == 0) return absl::OkStatus();
    return absl::InternalError(absl::StrCat(what, ": emulated error ", error));
  }

 private:
  static void Unmap(const std::pair<void*, size_t>& mapping) {
    DeviceMemory::Get().Remove(mapping.first);
    munmap(mapping.first, mapping.second);
  }
  static void Move(void* to, const void* from, size_t size) {
    DeviceMemory::Get().Enter();
    std::memmove(to, from, size);
    DeviceMemory::Get().Leave();
  }
  static absl::Status NotWhileRecording(const char* what) {
    return absl::FailedPreconditionError(absl::StrCat("between StartRecording and FinishRecording, ", what));
  }

  DeviceInfo info_;
  simt::Stream stream_;
  const std::unique_ptr<PeerServices> peers_ = CreateEmulatedPeers();
  std::map<void*, std::pair<void*, size_t>> mappings_;
};

}  // namespace

std::unique_ptr<Runtime> CreateEmulatedRuntime(bool lazy) { return std::make_unique<EmulatedRuntime>(lazy); }

}  // namespace phalanx::cuda
