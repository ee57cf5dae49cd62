// Makes the emulated device in mode fast, with a cuBLASLt of the tests' own, a rung of the binary that links
// this.
#include "kernels/backends.h"
#include "kernels/cuda/runtime.h"
#include "tests/cuda/fake_cublaslt.h"
#include "tests/kernels/ops_fixture.h"

namespace phalanx {
namespace {

INSTANTIATE_TEST_SUITE_P(Fast, OpsTest, testing::ValuesIn(RungCases()), RungCaseName);

const bool registered = [] {
  RegisterBackend(kEmulatedCudaRung, [](const OpsOptions& options) -> absl::StatusOr<std::unique_ptr<Ops>> {
    OpsOptions fast = options;
    fast.device_mode = DeviceMode::kFast;
    fast.cache_folder = "/proc/none";  // where nothing can be kept
    return cuda::CreateCudaOps(cuda::CreateEmulatedRuntime(), fast, &cuda::FakeTable());
  });
  return true;
}();

}  // namespace
}  // namespace phalanx
