// Makes the emulated device a rung of the binary that links this.
#include "kernels/backends.h"
#include "kernels/cuda/runtime.h"

namespace phalanx {
namespace {

const bool registered = [] {
  RegisterBackend(kEmulatedCudaRung, [](const OpsOptions& options) -> absl::StatusOr<std::unique_ptr<Ops>> {
    return cuda::CreateCudaOps(cuda::CreateEmulatedRuntime(), options);
  });
  return true;
}();

}  // namespace
}  // namespace phalanx
