// The keys of one architecture in a GGUF file, for what reads a ModelConfig from them; nobody else includes
// this.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

#include "absl/status/status.h"
#include "base/gguf.h"
#include "base/model_config.h"

namespace phalanx::internal {

// Looks up "<architecture>.<key>" with range checks. Errors name file, key and value.
class GgufKeys {
 public:
  // Largest value a count or size may have; products of any two stay inside 63 bits.
  static constexpr int64_t kMaxSize = int64_t{1} << 30;
  static constexpr int64_t kMaxLayers = 4096;
  static constexpr int64_t kMaxHeads = 65536;  // heads, channels of one, experts

  GgufKeys(const GgufFile& file, std::string_view architecture) : file_(file), architecture_(architecture) {}

  std::string Name(std::string_view key) const { return architecture_ + "." + std::string(key); }
  bool Has(std::string_view key) const { return file_.FindValue(Name(key)) != nullptr; }

  // From 1 to max. "Optional": *out stays as it is where the key is absent. A count may be 0.
  absl::Status Size(std::string_view key, int64_t max, int* out) const { return Integer(key, 1, max, out); }
  absl::Status OptionalSize(std::string_view key, int64_t max, int* out) const {
    return Has(key) ? Integer(key, 1, max, out) : absl::OkStatus();
  }
  absl::Status OptionalCount(std::string_view key, int64_t max, int* out) const {
    return Has(key) ? Integer(key, 0, max, out) : absl::OkStatus();
  }
  absl::Status PositiveFloat(std::string_view key, double* out) const;
  absl::Status OptionalPositive(std::string_view key, double* out) const {
    return Has(key) ? PositiveFloat(key, out) : absl::OkStatus();
  }
  // A feature that would change the arithmetic and is not built: the key must be absent or neutral.
  absl::Status Neutral(std::string_view key, double neutral) const;

 private:
  absl::Status Integer(std::string_view key, int64_t min, int64_t max, int* out) const;

  const GgufFile& file_;
  const std::string architecture_;
};

// Fills rope, rope_scaling, rope_factor, original_context_length and softmax_factor. Wants context_length,
// key_dim and mla.
absl::Status ReadGgufRope(const GgufFile& file, const GgufKeys& keys, ModelConfig& config);

}  // namespace phalanx::internal
