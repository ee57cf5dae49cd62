// RoPE of a GGUF file, resolved into tables.
// source: https://github.com/ggml-org/llama.cpp: src/llama-model.cpp, src/llama-context.cpp, conversion/
#include <cmath>
#include <cstring>
#include <limits>
#include <utility>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "base/gguf_keys.h"
#include "base/rope_scaling.h"
#include "base/status_macros.h"
#include "base/strings.h"

namespace phalanx::internal {
namespace {

// Empty where there is no such tensor.
absl::Status ReadDivisors(const GgufFile& file, const char* name, int rotary_dim, std::vector<float>* out) {
  const GgufTensor* tensor = file.FindTensor(name);
  if (tensor == nullptr) return absl::OkStatus();
  const int64_t count = rotary_dim / 2;
  if (tensor->dtype != DType::kF32 || tensor->dims != std::vector<int64_t>{count}) {
    return absl::InvalidArgumentError(
        absl::StrCat(file.path(), ": ", name, " is ", ToAbsl(tensor->type_name()), " of ", tensor->bytes,
                     " bytes, must be F32 [", count, "], one divisor a frequency"));
  }
  out->resize(count);
  std::memcpy(out->data(), tensor->data, count * sizeof(float));
  for (int64_t i = 0; i < count; ++i) {
    if (std::isfinite((*out)[i]) && (*out)[i] > 0) continue;
    return absl::InvalidArgumentError(
        absl::StrCat(file.path(), ": ", name, "[", i, "] is ", (*out)[i], ", must be finite and above 0"));
  }
  return absl::OkStatus();
}

absl::Status LongRope(const GgufFile& file, const GgufKeys& keys, RopeConfig rope, ModelConfig& config) {
  RopeConfig longer = rope;
  PHX_RETURN_IF_ERROR(ReadDivisors(file, "rope_factors_short.weight", rope.rotary_dim, &rope.freq_factors));
  PHX_RETURN_IF_ERROR(ReadDivisors(file, "rope_factors_long.weight", rope.rotary_dim, &longer.freq_factors));
  if (rope.freq_factors.empty() || longer.freq_factors.empty()) {
    return absl::InvalidArgumentError(
        absl::StrCat(file.path(), ": LongRoPE needs both tensors rope_factors_short.weight and ",
                     "rope_factors_long.weight; one is missing"));
  }
  PHX_RETURN_IF_ERROR(
      keys.Size("rope.scaling.original_context_length", GgufKeys::kMaxSize, &config.original_context_length));
  if (config.original_context_length < 2) {
    return absl::InvalidArgumentError(
        absl::StrCat(file.path(), ": ", keys.Name("rope.scaling.original_context_length"), " is ",
                     config.original_context_length, ", must be at least 2 for LongRoPE"));
  }
  config.rope_factor = static_cast<double>(config.context_length) / config.original_context_length;
  double attention = LongRopeAttention(config.rope_factor, config.original_context_length);
  PHX_RETURN_IF_ERROR(keys.OptionalPositive("rope.scaling.attn_factor", &attention));
  rope.attention_factor = longer.attention_factor = static_cast<float>(attention);
  config.rope_scaling = RopeScaling::kLongRope;
  config.rope = {std::move(rope), std::move(longer)};
  return absl::OkStatus();
}

absl::Status Yarn(const GgufFile& file, const GgufKeys& keys, RopeConfig rope, ModelConfig& config) {
  PHX_RETURN_IF_ERROR(keys.Neutral("rope.scaling.yarn_ext_factor", 1));
  PHX_RETURN_IF_ERROR(keys.PositiveFloat("rope.scaling.factor", &config.rope_factor));
  config.original_context_length = config.context_length;
  PHX_RETURN_IF_ERROR(keys.OptionalSize("rope.scaling.original_context_length", GgufKeys::kMaxSize,
                                        &config.original_context_length));
  YarnSettings settings{.rotary_dim = rope.rotary_dim,
                        .theta = rope.theta,
                        .factor = config.rope_factor,
                        .original = static_cast<double>(config.original_context_length)};
  PHX_RETURN_IF_ERROR(keys.OptionalPositive("rope.scaling.yarn_beta_fast", &settings.beta_fast));
  PHX_RETURN_IF_ERROR(keys.OptionalPositive("rope.scaling.yarn_beta_slow", &settings.beta_slow));
  if (settings.beta_fast < settings.beta_slow) {
    return absl::InvalidArgumentError(
        absl::StrCat(file.path(), ": ", keys.Name("rope.scaling.yarn_beta_fast"), " is ", settings.beta_fast,
                     ", must be at least yarn_beta_slow, ", settings.beta_slow));
  }
  if (rope.theta <= 1) {
    return absl::InvalidArgumentError(absl::StrCat(file.path(), ": ", keys.Name("rope.freq_base"), " is ",
                                                   rope.theta, ", must be above 1 for YaRN"));
  }
  // A tenth of mscale_all_dim. Where it is given mscale is the same: cos and sin stay as they are, and the
  // scale of the scores grows.
  double log_multiplier = 0;
  PHX_RETURN_IF_ERROR(keys.OptionalPositive("rope.scaling.yarn_log_multiplier", &log_multiplier));
  double attention = log_multiplier > 0 ? 1 : YarnScale(config.rope_factor, 1);
  PHX_RETURN_IF_ERROR(keys.OptionalPositive("rope.scaling.yarn_attn_factor", &attention));
  if (log_multiplier > 0) {
    // Files keep it as a float.
    const double scale = YarnScale(config.rope_factor, static_cast<float>(log_multiplier) / 0.1f);
    config.softmax_factor = scale * scale;
  }
  rope.attention_factor = static_cast<float>(attention);
  rope.freq_factors = YarnDivisors(settings);
  config.rope_scaling = RopeScaling::kYarn;
  config.rope = {std::move(rope)};
  return absl::OkStatus();
}

}  // namespace

absl::Status ReadGgufRope(const GgufFile& file, const GgufKeys& keys, ModelConfig& config) {
  std::string_view type = "none";
  if (keys.Has("rope.scaling.type")) {
    PHX_ASSIGN_OR_RETURN(type, file.GetString(keys.Name("rope.scaling.type")));
  }
  const bool is_phi3 = config.architecture == "phi3";
  if (type != "none" && type != "linear" && type != (is_phi3 ? "longrope" : "yarn")) {
    return absl::UnimplementedError(
        absl::StrCat(file.path(), ": ", keys.Name("rope.scaling.type"), " ", Quote(type),
                     " is not supported; supported: ", is_phi3 ? "longrope" : "yarn", ", none, no such key"));
  }
  PHX_RETURN_IF_ERROR(keys.Neutral("rope.scale_linear", 1));
  PHX_RETURN_IF_ERROR(keys.Neutral("rope.scaling.alpha", 0));
  RopeConfig rope;
  // Converters permute llama's queries and keys so that neighbouring channels rotate; DeepSeek's are so.
  rope.interleaved = config.architecture == "llama" || config.architecture == "deepseek2";
  rope.rotary_dim = config.mla ? config.mla->rope_dim : config.key_dim;
  PHX_RETURN_IF_ERROR(keys.OptionalSize("rope.dimension_count", rope.rotary_dim, &rope.rotary_dim));
  if (rope.rotary_dim % 2 != 0) {
    return absl::InvalidArgumentError(absl::StrCat(file.path(), ": ", rope.rotary_dim,
                                                   " rotating channels a head, must be an even number"));
  }
  PHX_RETURN_IF_ERROR(keys.OptionalPositive("rope.freq_base", &rope.theta));
  if (is_phi3 && (type == "longrope" || file.FindTensor("rope_factors_long.weight") != nullptr ||
                  file.FindTensor("rope_factors_short.weight") != nullptr)) {
    return LongRope(file, keys, std::move(rope), config);
  }
  PHX_RETURN_IF_ERROR(keys.Neutral("rope.scaling.attn_factor", 1));
  if (type == "yarn") return Yarn(file, keys, std::move(rope), config);
  if (type == "linear" || !keys.Has("rope.scaling.type")) {
    PHX_RETURN_IF_ERROR(keys.Neutral("rope.scaling.factor", 1));
  }
  PHX_RETURN_IF_ERROR(ReadDivisors(file, "rope_freqs.weight", rope.rotary_dim, &rope.freq_factors));
  config.rope.push_back(std::move(rope));
  return absl::OkStatus();
}

absl::Status GgufKeys::Integer(std::string_view key, int64_t min, int64_t max, int* out) const {
  PHX_ASSIGN_OR_RETURN(const int64_t value, file_.GetInt(Name(key)));
  if (value < min || value > max) {
    return absl::InvalidArgumentError(
        absl::StrCat(file_.path(), ": ", Name(key), " is ", value, ", must be ", min, " to ", max));
  }
  *out = static_cast<int>(value);
  return absl::OkStatus();
}

absl::Status GgufKeys::PositiveFloat(std::string_view key, double* out) const {
  PHX_ASSIGN_OR_RETURN(const double value, file_.GetFloat(Name(key)));
  if (!std::isfinite(value) || value <= 0) {
    return absl::InvalidArgumentError(
        absl::StrCat(file_.path(), ": ", Name(key), " is ", value, ", must be finite and above 0"));
  }
  *out = value;
  return absl::OkStatus();
}

absl::Status GgufKeys::Neutral(std::string_view key, double neutral) const {
  const GgufValue* value = file_.FindValue(Name(key));
  if (value == nullptr) return absl::OkStatus();
  double number = std::numeric_limits<double>::quiet_NaN();
  if (const auto* u = std::get_if<uint64_t>(value)) number = static_cast<double>(*u);
  if (const auto* i = std::get_if<int64_t>(value)) number = static_cast<double>(*i);
  if (const auto* d = std::get_if<double>(value)) number = *d;
  if (const auto* b = std::get_if<bool>(value)) number = *b;
  if (number == neutral) return absl::OkStatus();
  return absl::UnimplementedError(absl::StrCat(file_.path(), ": ", Name(key),
                                               " is set to something other than ", neutral,
                                               ", which is not supported"));
}

}  // namespace phalanx::internal
