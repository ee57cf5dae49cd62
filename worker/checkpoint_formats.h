// What Checkpoint::Open chooses from; nobody else includes this.
#pragma once

#include <memory>
#include <string>
#include <string_view>

#include "absl/status/statusor.h"
#include "worker/checkpoint.h"

namespace phalanx {

// config.json and safetensors files of a directory.
absl::StatusOr<std::unique_ptr<Checkpoint>> OpenHfCheckpoint(const std::string& directory);

// The N of a name that begins with `prefix` and "N."; -1 where it does not.
int LayerOf(std::string_view name, std::string_view prefix);

}  // namespace phalanx
