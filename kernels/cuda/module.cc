// What the module shows.
#include <utility>

#include "kernels/backends.h"
#include "kernels/cuda/runtime.h"
#include "kernels/module_interface.h"

namespace phalanx::cuda {
namespace {

absl::StatusOr<std::unique_ptr<Ops>> Create(const OpsOptions& options) {
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

extern "C" __attribute__((visibility("default"))) const char* phalanx_module_interface() {
  return phalanx::kModuleInterface;
}

extern "C" __attribute__((visibility("default"))) void phalanx_create_ops(
    const phalanx::OpsOptions* options, absl::StatusOr<std::unique_ptr<phalanx::Ops>>* result) {
  *result = phalanx::cuda::Create(*options);
}
