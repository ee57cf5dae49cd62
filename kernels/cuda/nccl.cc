#include "kernels/cuda/nccl.h"

#include <dlfcn.h>

#include <atomic>
#include <cstdlib>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"

namespace phalanx::cuda {
namespace {

std::atomic<const NcclApi*> g_for_testing{nullptr};

absl::StatusOr<NcclApi> Open() {
  std::vector<std::string> paths = {"libnccl.so.2"};
  if (const char* folder = std::getenv("NCCL_LIBRARY_PATH"); folder != nullptr && *folder != '\0') {
    paths.insert(paths.begin(), absl::StrCat(folder, "/libnccl.so.2"));
  }
  paths.push_back("/usr/local/cuda/lib64/libnccl.so.2");
  void* library = nullptr;
  std::string first_error;
  for (const std::string& path : paths) {
    library = dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL);
    if (library != nullptr) break;
    if (first_error.empty()) first_error = dlerror();
  }
  if (library == nullptr) {
    return absl::FailedPreconditionError(absl::StrCat(
        "NCCL is needed and cannot be opened (NCCL_LIBRARY_PATH names its folder): ", first_error));
  }
  NcclApi api;
  std::string missing;
  const auto find = [&](const char* name, auto* function) {
    *function = reinterpret_cast<std::remove_pointer_t<decltype(function)>>(dlsym(library, name));
    if (*function == nullptr) missing = name;
  };
  find("ncclGetVersion", &api.GetVersion);
  find("ncclGetUniqueId", &api.GetUniqueId);
  find("ncclCommInitRankConfig", &api.CommInitRankConfig);
  find("ncclCommGetAsyncError", &api.CommGetAsyncError);
  find("ncclCommAbort", &api.CommAbort);
  find("ncclGroupStart", &api.GroupStart);
  find("ncclGroupEnd", &api.GroupEnd);
  find("ncclSend", &api.Send);
  find("ncclRecv", &api.Recv);
  find("ncclGetErrorString", &api.GetErrorString);
  find("ncclGetLastError", &api.GetLastError);
  find("ncclAllReduce", &api.AllReduce);
  if (!missing.empty()) {
    return absl::FailedPreconditionError(
        absl::StrCat("libnccl.so.2 has no ", missing, "; NCCL 2.18 or later is needed"));
  }
  return api;
}

}  // namespace

absl::StatusOr<const NcclApi*> LoadNccl() {
  if (const NcclApi* api = g_for_testing.load(); api != nullptr) return api;
  static const auto& api = *new absl::StatusOr<NcclApi>(Open());
  if (!api.ok()) return api.status();
  return &*api;
}

void SetNcclForTesting(const NcclApi* api) { g_for_testing = api; }

std::string NcclVersionText(int version) {
  return absl::StrCat(version / 10000, ".", version / 100 % 100, ".", version % 100);
}

}  // namespace phalanx::cuda
