#include "kernels/cuda/emulator/emulated_peers.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cstdlib>
#include <cstring>
#include <map>
#include <vector>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "base/mutex.h"

namespace phalanx::cuda {
namespace {

constexpr size_t kAlignment = 256;

class EmulatedPeers : public PeerServices {
 public:
  ~EmulatedPeers() override {
    for (const auto& [data, mapping] : mappings_) {
      munmap(data, mapping.bytes);
      if (mapping.file >= 0) close(mapping.file);
    }
  }

  std::string device_name() const override { return absl::StrCat("emulated in process ", getpid()); }
  absl::StatusOr<void*> AllocateMapped(int64_t bytes) override {
    const size_t size = (static_cast<size_t>(bytes) + kAlignment) / kAlignment * kAlignment;
    void* data = std::aligned_alloc(kAlignment, size);
    if (data == nullptr) return absl::ResourceExhaustedError(absl::StrCat("no ", bytes, " bytes"));
    std::memset(data, 0, size);
    return data;
  }
  void FreeMapped(void* data) override { std::free(data); }

  // A file without a name, which lives as long as somebody has it mapped.
  absl::StatusOr<void*> AllocateShared(int64_t bytes) override {
    const int file = memfd_create("phalanx-emulated-device", MFD_CLOEXEC);
    if (file < 0 || ftruncate(file, bytes) != 0) {
      if (file >= 0) close(file);
      return absl::ResourceExhaustedError(
          absl::StrCat("Allocate: this device cannot give ", bytes, " bytes"));
    }
    absl::StatusOr<void*> data = Map(file, bytes);
    if (!data.ok()) close(file);
    return data;
  }
  void FreeShared(void* data) override { Unmap(data); }
  absl::StatusOr<std::string> Export(void* data) override {
    MutexLock lock(mu_);
    const Mapping& mapping = mappings_.at(data);
    return absl::StrCat(getpid(), " ", mapping.file, " ", mapping.bytes);
  }
  absl::StatusOr<void*> Import(const std::string& handle) override {
    const std::vector<std::string> parts = absl::StrSplit(handle, ' ');
    int64_t bytes = 0;
    if (parts.size() != 3 || !absl::SimpleAtoi(parts[2], &bytes)) {
      return absl::InvalidArgumentError("no handle of an emulated device's memory");
    }
    const std::string path = absl::StrCat("/proc/", parts[0], "/fd/", parts[1]);
    const int file = open(path.c_str(), O_RDWR | O_CLOEXEC);
    if (file < 0) return absl::FailedPreconditionError(absl::StrCat(path, " cannot be opened"));
    absl::StatusOr<void*> data = Map(file, bytes);
    if (!data.ok()) close(file);
    return data;
  }
  void CloseImport(void* data) override { Unmap(data); }

  absl::StatusOr<void*> CreateEvent() override { return nullptr; }
  void DestroyEvent(void*) override {}
  absl::Status Record(void*, void*) override { return absl::OkStatus(); }
  absl::Status Follow(void*, void*) override { return absl::OkStatus(); }
  absl::StatusOr<bool> IsDone(void*) override { return true; }

 private:
  struct Mapping {
    size_t bytes;
    int file;
  };

  absl::StatusOr<void*> Map(int file, int64_t bytes) {
    void* data = mmap(nullptr, static_cast<size_t>(bytes), PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
    if (data == MAP_FAILED) {
      return absl::ResourceExhaustedError(absl::StrCat("an emulated device cannot map ", bytes, " bytes"));
    }
    MutexLock lock(mu_);
    mappings_[data] = {static_cast<size_t>(bytes), file};
    return data;
  }
  void Unmap(void* data) {
    MutexLock lock(mu_);
    const auto found = mappings_.find(data);
    if (found == mappings_.end()) return;
    munmap(data, found->second.bytes);
    close(found->second.file);
    mappings_.erase(found);
  }

  Mutex mu_;
  std::map<void*, Mapping> mappings_ ABSL_GUARDED_BY(mu_);
};

}  // namespace

std::unique_ptr<PeerServices> CreateEmulatedPeers() { return std::make_unique<EmulatedPeers>(); }

}  // namespace phalanx::cuda
