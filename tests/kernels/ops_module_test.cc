// Which modules are taken: those beside this test are fakes (fake_module.cc).
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstdlib>
#include <filesystem>

#include "kernels/backends.h"
#include "kernels/module_interface.h"

namespace phalanx {
namespace {

using testing::AllOf;
using testing::HasSubstr;

absl::Status Open(const char* rung) { return CreateOps({rung, Compute::kFast, 1}).status(); }

std::string Beside(const char* library) {
  return std::filesystem::read_symlink("/proc/self/exe").parent_path() / library;
}

TEST(OpsModule, OfThisBuildMakesOps) {
  setenv("FAKE_MODULE_INTERFACE", kModuleInterface, 1);
  EXPECT_EQ(Open(kCudaRung), absl::CancelledError("the fake was asked for cuda"));
}

// The version is the same: it is what both share that differs.
TEST(OpsModule, OfAnotherBuildIsRefused) {
  const std::string ours = kModuleInterface;
  std::string other = ours;
  other.back() = ours.back() == '0' ? '1' : '0';
  setenv("FAKE_MODULE_INTERFACE", other.c_str(), 1);
  const absl::Status status = Open(kCudaRung);
  EXPECT_EQ(status.code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(std::string(status.message()),
              AllOf(HasSubstr(Beside("libphalanx_cuda.so")), HasSubstr(other), HasSubstr(ours),
                    HasSubstr("install the module of the program's own build")));
}

TEST(OpsModule, ThatNamesNoInterfaceIsRefused) {
  const absl::Status status = Open(kEmulatedCudaRung);
  EXPECT_EQ(status.code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(std::string(status.message()),
              AllOf(HasSubstr(Beside("libphalanx_cuda_emulated.so")), HasSubstr("one that it does not name"),
                    HasSubstr(kModuleInterface)));
}

}  // namespace
}  // namespace phalanx
