// Devices' backends: made by modules that are opened at run time, or linked in and registered (by tests).
#pragma once

#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "kernels/ops.h"

namespace phalanx {

using OpsCreator = absl::StatusOr<std::unique_ptr<Ops>> (*)(const OpsOptions& options);

// From now on CreateOps of this rung is `creator`'s. Before threads start.
void RegisterBackend(const std::string& rung, OpsCreator creator);

// Rungs of modules, and the shared library of each. A module exports two extern "C" functions:
// phalanx_module_interface, an OpsModuleInterface that returns kModuleInterface, and phalanx_create_ops, an
// OpsModuleCreator. One of another interface than the program's is refused, as this header and what it
// includes may differ. It is looked for beside the executable, in ../lib/phalanx beside it, and by the
// system.
inline constexpr const char* kCudaRung = "cuda";
inline constexpr const char* kEmulatedCudaRung = "cuda-emulated";  // a device for tests
using OpsModuleInterface = const char* (*)();
using OpsModuleCreator = void (*)(const OpsOptions* options, absl::StatusOr<std::unique_ptr<Ops>>* result);

}  // namespace phalanx
