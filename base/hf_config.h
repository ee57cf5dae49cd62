// Reads the config.json of a Hugging Face model, in both dialects: transformers 4 (rope_theta, rope_scaling,
// torch_dtype) and transformers 5 (rope_parameters, dtype, layer_types). Keys that are absent have the
// defaults of the class in transformers.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "base/json_file.h"
#include "base/model_config.h"

namespace phalanx {

inline constexpr int64_t kMaxConfigBytes = int64_t{4} << 20;

struct HfConfig {
  ModelConfig model;           // architecture: the name that GGUF has for it
  std::string class_name;      // "LlamaForCausalLM"
  std::string dtype;           // "bfloat16", "float16" or "float32": of what is not quantised
  std::optional<int64_t> bos;  // token ids
  std::vector<int64_t> eos;
};

// `directory`/config.json. Unimplemented for a class, RoPE type, activation, quantisation, or an attention
// window in effect, and for keys that change the arithmetic in a way not known here; NotFound /
// InvalidArgument for a missing file and missing or impossible keys. Each names file, key, value and what is
// supported.
absl::StatusOr<HfConfig> ReadHfConfig(const std::string& directory);
absl::StatusOr<ModelConfig> ModelConfigFromHf(const std::string& directory);

// The same from what the file `name` holds.
absl::StatusOr<HfConfig> HfConfigFromJson(const nlohmann::json& config, const std::string& name);

namespace internal {
// Fills rope, rope_scaling, rope_factor, original_context_length and softmax_factor. Wants context_length,
// key_dim and mla. A partial rotary factor is Phi3's alone, so are LongRoPE's two tables.
absl::Status ReadHfRope(const JsonKeys& config, bool is_phi3, ModelConfig& model);
// quantization_config: fills quantisation, fp8, int4 and ffn_unit.
absl::Status ReadHfQuantisation(const JsonKeys& config, ModelConfig& model);
}  // namespace internal

}  // namespace phalanx
