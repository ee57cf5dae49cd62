// The backend factory: the only place that knows which backends there are.
#include "kernels/ops.h"

#include <dlfcn.h>
#include <unistd.h>

#include <chrono>
#include <map>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "base/status_macros.h"
#include "kernels/backends.h"
#include "kernels/cpu/cpu_features.h"
#include "kernels/cpu/cpu_ops.h"
#include "kernels/module_interface.h"
#include "kernels/reference/reference_ops.h"

namespace phalanx {
namespace {

std::map<std::string, OpsCreator>& Creators() {
  static auto& creators = *new std::map<std::string, OpsCreator>;
  return creators;
}

// Folder of the executable, with a slash; empty where the system does not say.
std::string ExecutableFolder() {
  char path[4096];
  const ssize_t size = readlink("/proc/self/exe", path, sizeof(path));
  if (size <= 0) return "";
  const std::string file(path, static_cast<size_t>(size));
  return file.substr(0, file.rfind('/') + 1);
}

// Of a module that is open.
absl::StatusOr<OpsModuleCreator> CreatorOf(void* module, const std::string& library) {
  const auto create = reinterpret_cast<OpsModuleCreator>(dlsym(module, "phalanx_create_ops"));
  if (create == nullptr) {
    return absl::FailedPreconditionError(
        absl::StrCat(library, " has no phalanx_create_ops: it is no module of ours"));
  }
  const auto interface = reinterpret_cast<OpsModuleInterface>(dlsym(module, "phalanx_module_interface"));
  const std::string theirs = interface == nullptr ? "one that it does not name" : interface();
  if (theirs == kModuleInterface) return create;
  Dl_info file = {};
  dladdr(reinterpret_cast<void*>(create), &file);
  return absl::FailedPreconditionError(absl::StrCat(
      file.dli_fname == nullptr ? library : file.dli_fname, " is of another build: its interface is ", theirs,
      ", this program's is ", kModuleInterface, "; install the module of the program's own build"));
}

absl::StatusOr<std::unique_ptr<Ops>> CreateFromModule(const OpsOptions& options, const std::string& library) {
  const std::string folder = ExecutableFolder();
  void* module = nullptr;
  std::string last;
  for (const std::string& path : {folder + library, folder + "../lib/phalanx/" + library, library}) {
    module = dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL);
    if (module != nullptr) break;
    // Of a file that is there but cannot be opened, what is wrong with it.
    const char* error = dlerror();
    const bool is_path = path.find('/') != std::string::npos;  // else a name, which the loader looks for
    if (last.empty() || (is_path && access(path.c_str(), F_OK) == 0)) last = error;
  }
  if (module == nullptr) {
    return absl::FailedPreconditionError(
        absl::StrCat("rung \"", options.rung, "\" needs ", library, ", which cannot be opened: ", last));
  }
  PHX_ASSIGN_OR_RETURN(const OpsModuleCreator create, CreatorOf(module, library));
  absl::StatusOr<std::unique_ptr<Ops>> ops = absl::UnknownError("not made");
  create(&options, &ops);
  return ops;
}

}  // namespace

void RegisterBackend(const std::string& rung, OpsCreator creator) { Creators()[rung] = creator; }

std::vector<std::string> AvailableRungs() {
  std::vector<std::string> rungs = {"reference"};
  if (MissingForAvx2().empty()) rungs.push_back("avx2");
  if (MissingForAvx512().empty()) rungs.push_back("avx512");
  if (MissingForAvx512Bf16().empty()) rungs.push_back("avx512_bf16");
  if (MissingForAmx().empty()) rungs.push_back("amx");
  return rungs;
}

absl::StatusOr<double> Ops::Time(const std::function<absl::Status()>& work) {
  constexpr int64_t kTimeoutMs = 600000;
  PHX_RETURN_IF_ERROR(Synchronize(kTimeoutMs));
  const auto begin = std::chrono::steady_clock::now();
  PHX_RETURN_IF_ERROR(work());
  PHX_RETURN_IF_ERROR(Synchronize(kTimeoutMs));
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
}

absl::StatusOr<std::unique_ptr<Exchange>> Ops::CreateExchange(const ExchangeOptions&) {
  return absl::UnimplementedError(
      absl::StrCat("the backend ", info().backend, " has no memory of its own to exchange"));
}

absl::Status Ops::GatedMatmul(const GatedMatmulParams& p) {
  MatmulParams product;
  product.x = p.x;
  product.weight = p.weight;
  product.y = p.gate_up;
  PHX_RETURN_IF_ERROR(Matmul(product));
  return SwiGlu({.gate_up = p.gate_up, .y = p.y});
}

absl::Status Ops::GatedShardedMatmul(const GatedShardedMatmulParams& p) {
  PHX_RETURN_IF_ERROR(GatedMatmul({.x = p.x, .weight = p.gate_up, .gate_up = p.gated_from, .y = p.gated}));
  return ShardedMatmul({.x = p.gated, .weight = p.down, .sums = p.sums, .tree_stride = p.tree_stride});
}

absl::StatusOr<std::unique_ptr<Ops>> CreateOps(const OpsOptions& options) {
  constexpr int kMaxThreads = 1024;
  if (options.num_threads < 1 || options.num_threads > kMaxThreads) {
    return absl::InvalidArgumentError(
        absl::StrCat("num_threads is ", options.num_threads, ", must be in [1, ", kMaxThreads, "]"));
  }
  OpsOptions chosen = options;
  if (chosen.rung == "auto") chosen.rung = AvailableRungs().back();
  if (chosen.rung == "reference") return std::make_unique<ReferenceOps>(chosen);
  if (CpuOps::IsRung(chosen.rung)) return CpuOps::Create(chosen);
  if (const auto found = Creators().find(chosen.rung); found != Creators().end())
    return found->second(chosen);
  if (chosen.rung == kCudaRung) return CreateFromModule(chosen, "libphalanx_cuda.so");
  if (chosen.rung == kEmulatedCudaRung) return CreateFromModule(chosen, "libphalanx_cuda_emulated.so");
  return absl::InvalidArgumentError(
      absl::StrCat("rung is \"", chosen.rung,
                   "\", must be auto, reference, avx2, avx512, avx512_bf16 or amx; this host runs ",
                   absl::StrJoin(AvailableRungs(), ", ")));
}

}  // namespace phalanx
