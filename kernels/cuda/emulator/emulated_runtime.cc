#include <sys/mman.h>

#include <cstring>
#include <map>
#include <string>

#include "absl/strings/str_cat.h"
#include "kernels/cuda/runtime.h"

namespace phalanx::cuda {
namespace {

constexpr size_t kPage = 4096;
constexpr size_t kAlignment = 256;

class EmulatedRuntime : public Runtime {
 public:
  EmulatedRuntime() {
    info_.name = "emulated CUDA device (for tests, slow)";
    info_.architecture = "emulated";
    info_.emulated = true;
  }
  ~EmulatedRuntime() override {
    for (const auto& [data, mapping] : mappings_) munmap(mapping.first, mapping.second);
  }

  const DeviceInfo& device() const override { return info_; }

  absl::StatusOr<void*> Allocate(int64_t bytes) override {
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
    void* data = static_cast<char*>(mapping) + pages - size;
    mappings_[data] = {mapping, pages + kPage};
    return data;
  }
  void Free(void* data) override {
    const auto found = mappings_.find(data);
    if (found == mappings_.end()) return;
    munmap(found->second.first, found->second.second);
    mappings_.erase(found);
  }
  absl::Status Copy(void* to, const void* from, int64_t bytes, CopyKind) override {
    std::memmove(to, from, static_cast<size_t>(bytes));
    return absl::OkStatus();
  }
  absl::Status Synchronize(int64_t) override { return absl::OkStatus(); }
  void* stream() override { return nullptr; }
  absl::Status ToStatus(int error, const char* what) override {
    if (error == 0) return absl::OkStatus();
    return absl::InternalError(absl::StrCat(what, ": emulated error ", error));
  }

 private:
  DeviceInfo info_;
  std::map<void*, std::pair<void*, size_t>> mappings_;
};

}  // namespace

std::unique_ptr<Runtime> CreateEmulatedRuntime() { return std::make_unique<EmulatedRuntime>(); }

}  // namespace phalanx::cuda
