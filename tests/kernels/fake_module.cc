// A module that makes nothing. Its interface is what the test says in the environment or, of one that was
// built before modules named theirs, not there.
#include <cstdlib>

#include "kernels/backends.h"

#ifndef FAKE_MODULE_WITHOUT_INTERFACE
extern "C" const char* phalanx_module_interface() { return std::getenv("FAKE_MODULE_INTERFACE"); }
#endif

extern "C" void phalanx_create_ops(const phalanx::OpsOptions* options,
                                   absl::StatusOr<std::unique_ptr<phalanx::Ops>>* result) {
  *result = absl::CancelledError("the fake was asked for " + options->rung);
}
