// `phalanx inspect`: what a model is and what memory its ranks need, from its files alone.
#pragma once

#include <cstdint>
#include <nlohmann/json.hpp>
#include <string>
#include <string_view>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "client/config.h"
#include "client/model_facts.h"

namespace phalanx {

// Prints to stdout. Errors name the file.
absl::Status RunInspect(const ClientConfig& config);

// "80GB" (10^9), "79.1GiB" (2^30), also B, kB, KiB, MB, MiB, TB, TiB. InvalidArgument for anything else.
absl::StatusOr<int64_t> ParseByteSize(std::string_view text);

// The report of a model, as JSON and for people. InvalidArgument for options that fit no model.
absl::StatusOr<nlohmann::ordered_json> InspectReport(const ModelFacts& facts, const ClientConfig& config);
std::string RenderReport(const nlohmann::ordered_json& report);

}  // namespace phalanx
