#include "base/model_config.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <string_view>
#include <utility>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "base/architectures.h"
#include "base/status_macros.h"
#include "base/strings.h"

namespace phalanx {
namespace {

// Largest value a count or size may have; products of any two stay inside 63 bits.
constexpr int64_t kMaxSize = int64_t{1} << 30;
constexpr int64_t kMaxLayers = 4096;
constexpr int64_t kMaxHeads = 65536;  // heads, and channels of one

// Looks up "<architecture>.<key>" with range checks.
class Keys {
 public:
  Keys(const GgufFile& file, std::string_view architecture) : file_(file), architecture_(architecture) {}

  std::string Name(std::string_view key) const { return architecture_ + "." + std::string(key); }
  bool Has(std::string_view key) const { return file_.FindValue(Name(key)) != nullptr; }

  absl::Status Size(std::string_view key, int64_t max, int* out) const {
    PHX_ASSIGN_OR_RETURN(const int64_t value, file_.GetInt(Name(key)));
    if (value < 1 || value > max) {
      return absl::InvalidArgumentError(
          absl::StrCat(file_.path(), ": ", Name(key), " is ", value, ", must be 1 to ", max));
    }
    *out = static_cast<int>(value);
    return absl::OkStatus();
  }
  // Leaves *out as it is where the key is absent.
  absl::Status OptionalSize(std::string_view key, int64_t max, int* out) const {
    return Has(key) ? Size(key, max, out) : absl::OkStatus();
  }

  absl::Status PositiveFloat(std::string_view key, double* out) const {
    PHX_ASSIGN_OR_RETURN(const double value, file_.GetFloat(Name(key)));
    if (!std::isfinite(value) || value <= 0) {
      return absl::InvalidArgumentError(
          absl::StrCat(file_.path(), ": ", Name(key), " is ", value, ", must be finite and above 0"));
    }
    *out = value;
    return absl::OkStatus();
  }

  // A feature that would change the arithmetic and is not built: the key must be absent or neutral.
  absl::Status Neutral(std::string_view key, double neutral) const {
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

 private:
  const GgufFile& file_;
  const std::string architecture_;
};

absl::Status ReadRope(const GgufFile& file, const Keys& keys, ModelConfig& config) {
  if (keys.Has("rope.scaling.type")) {
    PHX_ASSIGN_OR_RETURN(const std::string_view type, file.GetString(keys.Name("rope.scaling.type")));
    if (type != "none") {
      return absl::UnimplementedError(absl::StrCat(file.path(), ": ", keys.Name("rope.scaling.type"), " '",
                                                   ToAbsl(type),
                                                   "' is not supported; supported is 'none' or no such key"));
    }
  }
  PHX_RETURN_IF_ERROR(keys.Neutral("rope.scale_linear", 1));
  PHX_RETURN_IF_ERROR(keys.Neutral("rope.scaling.attn_factor", 1));
  RopeConfig rope;
  // Converters permute queries and keys of this architecture so that neighbouring channels rotate.
  rope.interleaved = config.architecture == "llama";
  rope.rotary_dim = config.key_dim;
  PHX_RETURN_IF_ERROR(keys.OptionalSize("rope.dimension_count", config.key_dim, &rope.rotary_dim));
  if (rope.rotary_dim % 2 != 0) {
    return absl::InvalidArgumentError(absl::StrCat(file.path(), ": ", rope.rotary_dim,
                                                   " rotating channels a head, must be an even number"));
  }
  if (keys.Has("rope.freq_base")) PHX_RETURN_IF_ERROR(keys.PositiveFloat("rope.freq_base", &rope.theta));

  if (const GgufTensor* factors = file.FindTensor("rope_freqs.weight"); factors != nullptr) {
    const int64_t count = rope.rotary_dim / 2;
    if (factors->dtype != DType::kF32 || factors->dims != std::vector<int64_t>{count}) {
      return absl::InvalidArgumentError(
          absl::StrCat(file.path(), ": rope_freqs.weight is ", ToAbsl(DTypeName(factors->dtype)), " of ",
                       factors->bytes, " bytes, must be F32 [", count, "], one divisor a frequency"));
    }
    rope.freq_factors.resize(count);
    std::memcpy(rope.freq_factors.data(), factors->data, count * sizeof(float));
    for (int64_t i = 0; i < count; ++i) {
      if (!std::isfinite(rope.freq_factors[i]) || rope.freq_factors[i] <= 0) {
        return absl::InvalidArgumentError(absl::StrCat(file.path(), ": rope_freqs.weight[", i, "] is ",
                                                       rope.freq_factors[i], ", must be finite and above 0"));
      }
    }
  }
  config.rope.push_back(std::move(rope));
  return absl::OkStatus();
}

absl::Status ReadVocabulary(const GgufFile& file, const Keys& keys, ModelConfig& config) {
  const GgufTensor* embedding = file.FindTensor("token_embd.weight");
  if (embedding == nullptr) {
    return absl::NotFoundError(absl::StrCat(file.path(), ": tensor token_embd.weight is missing"));
  }
  if (embedding->dims.size() != 2 || embedding->dims[0] != config.hidden_size ||
      embedding->dims[1] > kMaxSize) {
    return absl::InvalidArgumentError(absl::StrCat(
        file.path(), ": token_embd.weight must have two dimensions, ", keys.Name("embedding_length"), " = ",
        config.hidden_size, " and the size of the vocabulary (at most ", kMaxSize, "); it has ",
        embedding->dims.size(), ", the first ", embedding->dims[0]));
  }
  config.vocab_size = static_cast<int>(embedding->dims[1]);
  int declared = config.vocab_size;
  PHX_RETURN_IF_ERROR(keys.OptionalSize("vocab_size", kMaxSize, &declared));
  if (declared != config.vocab_size) {
    return absl::InvalidArgumentError(absl::StrCat(file.path(), ": ", keys.Name("vocab_size"), " is ",
                                                   declared, " but token_embd.weight has ", config.vocab_size,
                                                   " rows"));
  }
  if (const GgufValue* tokens = file.FindValue("tokenizer.ggml.tokens"); tokens != nullptr) {
    const auto* strings = std::get_if<std::vector<std::string_view>>(tokens);
    if (strings == nullptr || strings->size() != static_cast<size_t>(config.vocab_size)) {
      return absl::InvalidArgumentError(absl::StrCat(
          file.path(),
          ": tokenizer.ggml.tokens must be an array of as many strings as token_embd.weight has rows, ",
          config.vocab_size, "; it ",
          strings == nullptr ? "is no array of strings" : absl::StrCat("has ", strings->size())));
    }
  }
  config.tied_embeddings = file.FindTensor("output.weight") == nullptr;
  return absl::OkStatus();
}

absl::StatusOr<ModelConfig> ReadConfig(const GgufFile& file, std::string_view architecture) {
  const Keys keys(file, architecture);
  ModelConfig config;
  config.architecture = std::string(architecture);
  PHX_RETURN_IF_ERROR(keys.Neutral("expert_count", 0));
  PHX_RETURN_IF_ERROR(keys.Neutral("attention.sliding_window", 0));
  PHX_RETURN_IF_ERROR(keys.Neutral("attention.causal", 1));
  PHX_RETURN_IF_ERROR(keys.Neutral("attention.clamp_kqv", 0));
  PHX_RETURN_IF_ERROR(keys.Neutral("attention.max_alibi_bias", 0));
  PHX_RETURN_IF_ERROR(keys.Neutral("use_parallel_residual", 0));
  for (const char* scale : {"logit_scale", "embedding_scale", "residual_scale"}) {
    PHX_RETURN_IF_ERROR(keys.Neutral(scale, 1));
  }

  PHX_RETURN_IF_ERROR(keys.Size("block_count", kMaxLayers, &config.num_layers));
  PHX_RETURN_IF_ERROR(keys.Size("context_length", kMaxSize, &config.context_length));
  PHX_RETURN_IF_ERROR(keys.Size("embedding_length", kMaxSize, &config.hidden_size));
  PHX_RETURN_IF_ERROR(keys.Size("feed_forward_length", kMaxSize, &config.ffn_size));
  PHX_RETURN_IF_ERROR(keys.Size("attention.head_count", kMaxHeads, &config.num_heads));
  config.num_kv_heads = config.num_heads;
  PHX_RETURN_IF_ERROR(keys.OptionalSize("attention.head_count_kv", config.num_heads, &config.num_kv_heads));
  if (config.num_heads % config.num_kv_heads != 0) {
    return absl::InvalidArgumentError(
        absl::StrCat(file.path(), ": ", keys.Name("attention.head_count"), " ", config.num_heads,
                     " is no multiple of ", keys.Name("attention.head_count_kv"), " ", config.num_kv_heads));
  }
  // Either width defaults to an equal share of the hidden size.
  if (!keys.Has("attention.key_length") || !keys.Has("attention.value_length")) {
    if (config.hidden_size % config.num_heads != 0) {
      return absl::InvalidArgumentError(absl::StrCat(
          file.path(), ": ", keys.Name("embedding_length"), " ", config.hidden_size, " is no multiple of ",
          keys.Name("attention.head_count"), " ", config.num_heads, ", and ",
          keys.Name("attention.key_length"), " and value_length do not both say how wide a head is"));
    }
    config.key_dim = config.value_dim = config.hidden_size / config.num_heads;
  }
  PHX_RETURN_IF_ERROR(keys.OptionalSize("attention.key_length", kMaxHeads, &config.key_dim));
  PHX_RETURN_IF_ERROR(keys.OptionalSize("attention.value_length", kMaxHeads, &config.value_dim));
  double eps = 0;
  PHX_RETURN_IF_ERROR(keys.PositiveFloat("attention.layer_norm_rms_epsilon", &eps));
  config.rms_eps = static_cast<float>(eps);
  PHX_RETURN_IF_ERROR(ReadRope(file, keys, config));
  PHX_RETURN_IF_ERROR(ReadVocabulary(file, keys, config));
  return config;
}

constexpr const char* kArchitectures[] = {
#define PHX_NAME(name, Which) name,
    PHX_ARCHITECTURES(PHX_NAME)
#undef PHX_NAME
};

}  // namespace

absl::Status UnsupportedArchitecture(const std::string& architecture) {
  return absl::UnimplementedError(
      absl::StrCat("architecture ", Quote(architecture),
                   " is not supported; supported: ", absl::StrJoin(kArchitectures, ", ")));
}

absl::StatusOr<ModelConfig> ModelConfigFromGguf(const GgufFile& file) {
  PHX_ASSIGN_OR_RETURN(const std::string_view architecture, file.GetString("general.architecture"));
  if (std::find(std::begin(kArchitectures), std::end(kArchitectures), architecture) ==
      std::end(kArchitectures)) {
    const absl::Status status = UnsupportedArchitecture(std::string(architecture));
    return absl::Status(status.code(), absl::StrCat(file.path(), ": ", status.message()));
  }
  PHX_ASSIGN_OR_RETURN(ModelConfig config, ReadConfig(file, architecture));
  if (file.FindValue("general.name") != nullptr) {
    PHX_ASSIGN_OR_RETURN(const std::string_view name, file.GetString("general.name"));
    config.name = std::string(name);
  }
  return config;
}

}  // namespace phalanx
