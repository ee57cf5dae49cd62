// Logging through spdlog: one line a record on stderr, "2026-01-31T12:00:00.123Z I component message".
#pragma once

#include <spdlog/spdlog.h>

#include <string_view>

#include "absl/status/status.h"

namespace phalanx {

// Call once in main, before other threads exist. `component` is printed in every line ("coordinator",
// "worker"). `level`: debug, info, warning or error; anything else is InvalidArgument naming it.
absl::Status InitLogging(std::string_view component, std::string_view level);

}  // namespace phalanx
