// The one symbol of the module.
#include <cstring>
#include <utility>

#include "absl/strings/str_cat.h"
#include "base/version.h"
#include "kernels/backends.h"
#include "kernels/cuda/runtime.h"

namespace phalanx::cuda {
namespace {

absl::StatusOr<std::unique_ptr<Ops>> Create(const char* version, const OpsOptions& options) {
  if (std::strcmp(version, kVersion) != 0) {
    return absl::FailedPreconditionError(
        absl::StrCat("the CUDA module is of version ", kVersion, ", the program of ", version));
  }
#ifdef PHALANX_CUDA_EMULATED
  return CreateCudaOps(CreateEmulatedRuntime(), options);
#else
  absl::StatusOr<std::unique_ptr<Runtime>> runtime = CreateCudaRuntime(options);
  if (!runtime.ok()) return runtime.status();
  return CreateCudaOps(*std::move(runtime), options);
#endif
}

}  // namespace
}  // namespace phalanx::cuda

extern "C" __attribute__((visibility("default"))) void phalanx_create_ops(
    const char* version, const phalanx::OpsOptions* options,
    absl::StatusOr<std::unique_ptr<phalanx::Ops>>* result) {
  *result = phalanx::cuda::Create(version, *options);
}
