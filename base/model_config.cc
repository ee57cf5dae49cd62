#include "base/model_config.h"

#include <algorithm>
#include <string_view>
#include <utility>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "base/architectures.h"
#include "base/gguf_keys.h"
#include "base/status_macros.h"
#include "base/strings.h"

namespace phalanx {
namespace {

using internal::GgufKeys;

constexpr int64_t kMaxSize = GgufKeys::kMaxSize;
constexpr int64_t kMaxLayers = GgufKeys::kMaxLayers;
constexpr int64_t kMaxHeads = GgufKeys::kMaxHeads;

absl::Status ReadVocabulary(const GgufFile& file, const GgufKeys& keys, ModelConfig& config) {
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

// A window changes the arithmetic only where it is shorter than the context; 0 is none.
absl::Status CheckWindow(const GgufFile& file, const GgufKeys& keys, const ModelConfig& config) {
  if (!keys.Has("attention.sliding_window")) return absl::OkStatus();
  PHX_ASSIGN_OR_RETURN(const int64_t window, file.GetInt(keys.Name("attention.sliding_window")));
  if (window == 0 || window >= config.context_length) return absl::OkStatus();
  return absl::UnimplementedError(absl::StrCat(
      file.path(), ": ", keys.Name("attention.sliding_window"), " is ", window,
      ", which is not supported; supported: 0, or at least the context of ", config.context_length));
}

absl::Status ReadAttention(const GgufFile& file, const GgufKeys& keys, ModelConfig& config) {
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
  return keys.OptionalSize("attention.value_length", kMaxHeads, &config.value_dim);
}

// Converters of today give the latent's widths as key_length and value_length, one KV head, and those of a
// head apart; older ones give those of a head.
absl::Status ReadMla(const GgufFile& file, const GgufKeys& keys, ModelConfig& config) {
  config.num_kv_heads = config.num_heads;
  const bool absorbed = keys.Has("attention.key_length_mla");
  PHX_RETURN_IF_ERROR(
      keys.Size(absorbed ? "attention.key_length_mla" : "attention.key_length", kMaxHeads, &config.key_dim));
  PHX_RETURN_IF_ERROR(keys.Size(absorbed ? "attention.value_length_mla" : "attention.value_length", kMaxHeads,
                                &config.value_dim));
  MlaConfig mla;
  PHX_RETURN_IF_ERROR(keys.OptionalSize("attention.q_lora_rank", kMaxSize, &mla.q_lora_rank));
  PHX_RETURN_IF_ERROR(keys.Size("attention.kv_lora_rank", kMaxSize, &mla.kv_lora_rank));
  PHX_RETURN_IF_ERROR(keys.Size("rope.dimension_count", kMaxHeads, &mla.rope_dim));
  mla.nope_dim = config.key_dim - mla.rope_dim;
  if (mla.nope_dim < 1) {
    return absl::InvalidArgumentError(absl::StrCat(file.path(), ": ", keys.Name("rope.dimension_count"),
                                                   " is ", mla.rope_dim, ", must be below the ",
                                                   config.key_dim, " channels of a head's key"));
  }
  config.mla = mla;
  return absl::OkStatus();
}

absl::Status ReadMoe(const GgufFile& file, const GgufKeys& keys, ModelConfig& config) {
  MoeConfig moe;
  PHX_RETURN_IF_ERROR(keys.Size("expert_count", kMaxHeads, &moe.num_experts));
  PHX_RETURN_IF_ERROR(keys.Size("expert_used_count", moe.num_experts, &moe.experts_per_token));
  PHX_RETURN_IF_ERROR(keys.Size("expert_feed_forward_length", kMaxSize, &moe.expert_ffn_size));
  PHX_RETURN_IF_ERROR(keys.OptionalCount("expert_shared_count", kMaxHeads, &moe.num_shared_experts));
  PHX_RETURN_IF_ERROR(
      keys.OptionalCount("leading_dense_block_count", config.num_layers, &moe.first_dense_layers));
  PHX_RETURN_IF_ERROR(keys.OptionalSize("expert_group_count", moe.num_experts, &moe.num_groups));
  moe.topk_groups = moe.num_groups;
  PHX_RETURN_IF_ERROR(keys.OptionalSize("expert_group_used_count", moe.num_groups, &moe.topk_groups));
  const auto bad = [&](std::string_view key, int value, const std::string& must) {
    return absl::InvalidArgumentError(
        absl::StrCat(file.path(), ": ", keys.Name(key), " is ", value, ", must be ", must));
  };
  if (moe.num_experts % moe.num_groups != 0) {
    return bad("expert_group_count", moe.num_groups,
               absl::StrCat("a divisor of the ", moe.num_experts, " experts"));
  }
  const int group = moe.num_experts / moe.num_groups;
  // A group's score is the sum of its best two.
  if (moe.num_groups > 1 && group < 2) {
    return bad("expert_group_count", moe.num_groups, "few enough for groups of two experts or more");
  }
  if (moe.experts_per_token > moe.topk_groups * group) {
    return bad(
        "expert_used_count", moe.experts_per_token,
        absl::StrCat("at most ", moe.topk_groups * group, ", the experts of the groups that are used"));
  }
  moe.normalize = false;
  if (keys.Has("expert_weights_norm")) {
    PHX_ASSIGN_OR_RETURN(moe.normalize, file.GetBool(keys.Name("expert_weights_norm")));
  }
  if (keys.Has("expert_weights_scale")) {
    PHX_RETURN_IF_ERROR(keys.PositiveFloat("expert_weights_scale", &moe.scaling_factor));
  }
  // 1 is a softmax, as is no key: DeepSeek-V2.
  constexpr int64_t kSigmoid = 2;
  int64_t gating = 1;
  if (keys.Has("expert_gating_func")) {
    PHX_ASSIGN_OR_RETURN(gating, file.GetInt(keys.Name("expert_gating_func")));
  }
  if (gating != kSigmoid) {
    return absl::UnimplementedError(
        absl::StrCat(file.path(), ": ", keys.Name("expert_gating_func"), " is ", gating,
                     keys.Has("expert_gating_func") ? "" : " (there is no such key)",
                     ", which is not supported; supported: 2, sigmoid"));
  }
  config.moe = moe;
  return absl::OkStatus();
}

absl::StatusOr<ModelConfig> ReadConfig(const GgufFile& file, std::string_view architecture) {
  const GgufKeys keys(file, architecture);
  ModelConfig config;
  config.architecture = std::string(architecture);
  const bool is_deepseek = architecture == "deepseek2";
  if (!is_deepseek) PHX_RETURN_IF_ERROR(keys.Neutral("expert_count", 0));
  PHX_RETURN_IF_ERROR(keys.Neutral("attention.causal", 1));
  PHX_RETURN_IF_ERROR(keys.Neutral("attention.clamp_kqv", 0));
  PHX_RETURN_IF_ERROR(keys.Neutral("attention.max_alibi_bias", 0));
  PHX_RETURN_IF_ERROR(keys.Neutral("attention.temperature_scale", 0));
  PHX_RETURN_IF_ERROR(keys.Neutral("use_parallel_residual", 0));
  for (const char* scale : {"logit_scale", "embedding_scale", "residual_scale"}) {
    PHX_RETURN_IF_ERROR(keys.Neutral(scale, 1));
  }
  config.qkv_bias = architecture == "qwen2";

  PHX_RETURN_IF_ERROR(keys.Size("block_count", kMaxLayers, &config.num_layers));
  if (is_deepseek) {
    // They are counted as blocks.
    PHX_RETURN_IF_ERROR(
        keys.OptionalCount("nextn_predict_layers", config.num_layers - 1, &config.num_mtp_layers));
    config.num_layers -= config.num_mtp_layers;
  }
  PHX_RETURN_IF_ERROR(keys.Size("context_length", kMaxSize, &config.context_length));
  PHX_RETURN_IF_ERROR(CheckWindow(file, keys, config));
  PHX_RETURN_IF_ERROR(keys.Size("embedding_length", kMaxSize, &config.hidden_size));
  PHX_RETURN_IF_ERROR(keys.Size("feed_forward_length", kMaxSize, &config.ffn_size));
  PHX_RETURN_IF_ERROR(keys.Size("attention.head_count", kMaxHeads, &config.num_heads));
  if (is_deepseek) {
    PHX_RETURN_IF_ERROR(ReadMla(file, keys, config));
    PHX_RETURN_IF_ERROR(ReadMoe(file, keys, config));
  } else {
    PHX_RETURN_IF_ERROR(ReadAttention(file, keys, config));
  }
  double eps = 0;
  PHX_RETURN_IF_ERROR(keys.PositiveFloat("attention.layer_norm_rms_epsilon", &eps));
  config.rms_eps = static_cast<float>(eps);
  PHX_RETURN_IF_ERROR(internal::ReadGgufRope(file, keys, config));
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

absl::Status CheckArchitecture(std::string_view architecture) {
  const bool known = std::find(std::begin(kArchitectures), std::end(kArchitectures), architecture) !=
                     std::end(kArchitectures);
  return known ? absl::OkStatus() : UnsupportedArchitecture(std::string(architecture));
}

absl::StatusOr<ModelConfig> ModelConfigFromGguf(const GgufFile& file) {
  PHX_ASSIGN_OR_RETURN(const std::string_view architecture, file.GetString("general.architecture"));
  if (const absl::Status status = CheckArchitecture(architecture); !status.ok()) {
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
