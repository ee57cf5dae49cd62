#include "base/hf_config.h"

#include <algorithm>
#include <initializer_list>
#include <string_view>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "base/status_macros.h"

namespace phalanx {
namespace {

using nlohmann::json;

// As for GGUF: products of any two stay inside 63 bits.
constexpr int64_t kMaxSize = int64_t{1} << 30;
constexpr int64_t kMaxLayers = 4096;
constexpr int64_t kMaxHeads = 65536;
constexpr int64_t kMaxExperts = 65536;

enum class Kind { kLlama, kPhi3, kQwen2, kDeepseekV3 };

struct HfClass {
  Kind kind;
  const char* class_name;
  const char* model_type;
  const char* architecture;
  double rms_eps;  // where the file has none
};

constexpr HfClass kClasses[] = {
    {Kind::kLlama, "LlamaForCausalLM", "llama", "llama", 1e-6},
    {Kind::kPhi3, "Phi3ForCausalLM", "phi3", "phi3", 1e-5},
    {Kind::kQwen2, "Qwen2ForCausalLM", "qwen2", "qwen2", 1e-6},
    {Kind::kDeepseekV3, "DeepseekV3ForCausalLM", "deepseek_v3", "deepseek2", 1e-6},
};

absl::StatusOr<const HfClass*> FindClass(const JsonKeys& keys) {
  std::vector<std::string> names;
  for (const HfClass& c : kClasses) names.push_back(c.class_name);
  const std::string supported = absl::StrJoin(names, ", ");
  const json* list = keys.Find("architectures");
  if (list == nullptr) return keys.Missing("architectures", absl::StrCat("an array of one of ", supported));
  if (!list->is_array() || list->empty() || !(*list)[0].is_string()) {
    return keys.Bad("architectures", *list, absl::StrCat("an array of one of ", supported));
  }
  for (const HfClass& c : kClasses) {
    if (c.class_name != (*list)[0].get<std::string>()) continue;
    std::string model_type = c.model_type;
    PHX_RETURN_IF_ERROR(keys.OptionalString("model_type", &model_type));
    if (model_type != c.model_type) {
      return keys.Bad("model_type", json(model_type),
                      absl::StrCat("'", c.model_type, "' for ", c.class_name));
    }
    return &c;
  }
  return keys.Unsupported("architectures[0]", (*list)[0], supported);
}

// The key must be absent or hold `only`.
absl::Status Only(const JsonKeys& keys, std::string_view key, const json& only) {
  const json* value = keys.Find(key);
  if (value == nullptr || *value == only) return absl::OkStatus();
  return keys.Unsupported(key, *value, ShowJson(only));
}

absl::Status ReadAttention(const JsonKeys& keys, ModelConfig& model) {
  PHX_RETURN_IF_ERROR(keys.Int("num_attention_heads", 1, kMaxHeads, &model.num_heads));
  model.num_kv_heads = model.num_heads;
  PHX_RETURN_IF_ERROR(keys.OptionalInt("num_key_value_heads", 1, model.num_heads, &model.num_kv_heads));
  if (model.num_heads % model.num_kv_heads != 0) {
    return absl::InvalidArgumentError(absl::StrCat(keys.Name("num_attention_heads"), " ", model.num_heads,
                                                   " is no multiple of num_key_value_heads ",
                                                   model.num_kv_heads));
  }
  if (keys.Find("head_dim") == nullptr) {
    if (model.hidden_size % model.num_heads != 0) {
      return absl::InvalidArgumentError(absl::StrCat(
          keys.Name("hidden_size"), " ", model.hidden_size, " is no multiple of num_attention_heads ",
          model.num_heads, ", and head_dim does not say how wide", " a head is"));
    }
    model.key_dim = model.hidden_size / model.num_heads;
  }
  PHX_RETURN_IF_ERROR(keys.OptionalInt("head_dim", 1, kMaxHeads, &model.key_dim));
  model.value_dim = model.key_dim;
  return absl::OkStatus();
}

absl::Status ReadDeepseek(const JsonKeys& keys, ModelConfig& model) {
  PHX_RETURN_IF_ERROR(keys.Int("num_attention_heads", 1, kMaxHeads, &model.num_heads));
  model.num_kv_heads = model.num_heads;
  int kv_heads = model.num_heads;
  PHX_RETURN_IF_ERROR(keys.OptionalInt("num_key_value_heads", 1, kMaxHeads, &kv_heads));
  if (kv_heads != model.num_heads) {
    return keys.Unsupported("num_key_value_heads", *keys.Find("num_key_value_heads"),
                            absl::StrCat("as many as num_attention_heads, ", model.num_heads));
  }
  MlaConfig mla;
  PHX_RETURN_IF_ERROR(keys.OptionalInt("q_lora_rank", 1, kMaxSize, &mla.q_lora_rank));
  PHX_RETURN_IF_ERROR(keys.Int("kv_lora_rank", 1, kMaxSize, &mla.kv_lora_rank));
  PHX_RETURN_IF_ERROR(keys.Int("qk_nope_head_dim", 1, kMaxHeads, &mla.nope_dim));
  PHX_RETURN_IF_ERROR(keys.Int("qk_rope_head_dim", 1, kMaxHeads, &mla.rope_dim));
  PHX_RETURN_IF_ERROR(keys.Int("v_head_dim", 1, kMaxHeads, &model.value_dim));
  model.key_dim = mla.nope_dim + mla.rope_dim;
  model.mla = mla;

  MoeConfig moe;
  moe.scaling_factor = 2.5;
  moe.first_dense_layers = std::min(3, model.num_layers);
  moe.num_shared_experts = 1;
  PHX_RETURN_IF_ERROR(keys.Int("n_routed_experts", 1, kMaxExperts, &moe.num_experts));
  PHX_RETURN_IF_ERROR(keys.Int("num_experts_per_tok", 1, moe.num_experts, &moe.experts_per_token));
  PHX_RETURN_IF_ERROR(keys.Int("moe_intermediate_size", 1, kMaxSize, &moe.expert_ffn_size));
  PHX_RETURN_IF_ERROR(keys.OptionalInt("n_shared_experts", 0, kMaxExperts, &moe.num_shared_experts));
  PHX_RETURN_IF_ERROR(
      keys.OptionalInt("first_k_dense_replace", 0, model.num_layers, &moe.first_dense_layers));
  PHX_RETURN_IF_ERROR(keys.Int("n_group", 1, moe.num_experts, &moe.num_groups));
  PHX_RETURN_IF_ERROR(keys.Int("topk_group", 1, moe.num_groups, &moe.topk_groups));
  PHX_RETURN_IF_ERROR(keys.OptionalBool("norm_topk_prob", &moe.normalize));
  PHX_RETURN_IF_ERROR(keys.OptionalPositive("routed_scaling_factor", &moe.scaling_factor));
  if (moe.num_experts % moe.num_groups != 0) {
    return keys.Bad("n_group", *keys.Find("n_group"),
                    absl::StrCat("a divisor of n_routed_experts, ", moe.num_experts));
  }
  const int group = moe.num_experts / moe.num_groups;
  // A group's score is the sum of its best two.
  if (moe.num_groups > 1 && group < 2) {
    return keys.Bad("n_group", *keys.Find("n_group"), "few enough for groups of two experts or more");
  }
  if (moe.experts_per_token > moe.topk_groups * group) {
    return keys.Bad("num_experts_per_tok", *keys.Find("num_experts_per_tok"),
                    absl::StrCat("at most ", moe.topk_groups * group, ", the experts of topk_group groups"));
  }
  PHX_RETURN_IF_ERROR(Only(keys, "moe_layer_freq", 1));
  PHX_RETURN_IF_ERROR(Only(keys, "scoring_func", "sigmoid"));
  PHX_RETURN_IF_ERROR(Only(keys, "topk_method", "noaux_tc"));
  model.moe = moe;

  for (const char* key : {"num_nextn_predict_layers", "num_mtp_layers"}) {
    PHX_RETURN_IF_ERROR(keys.OptionalInt(key, 0, kMaxLayers, &model.num_mtp_layers));
  }
  return absl::OkStatus();
}

// A sliding window changes the arithmetic only where it is on and shorter than the context.
absl::Status CheckWindow(const JsonKeys& keys, Kind kind, const ModelConfig& model) {
  int window = model.context_length;
  PHX_RETURN_IF_ERROR(keys.OptionalInt("sliding_window", 0, kMaxSize, &window));
  bool on = kind == Kind::kPhi3;
  int first_layer = kind == Kind::kQwen2 ? 28 : 0;
  if (kind == Kind::kQwen2) {
    PHX_RETURN_IF_ERROR(keys.OptionalBool("use_sliding_window", &on));
    PHX_RETURN_IF_ERROR(keys.OptionalInt("max_window_layers", 0, kMaxSize, &first_layer));
  }
  on = on && window < model.context_length;
  if (const json* types = keys.Find("layer_types"); types != nullptr) {
    if (!types->is_array() || types->size() != static_cast<size_t>(model.num_layers)) {
      return keys.Bad("layer_types", *types, absl::StrCat("an array of ", model.num_layers, " strings"));
    }
    for (size_t i = 0; i < types->size(); ++i) {
      const json& type = (*types)[i];
      const bool window_without_effect = type == "sliding_attention" && !on;
      if (type != "full_attention" && !window_without_effect) {
        return keys.Unsupported(absl::StrCat("layer_types[", i, "]"), type, "full_attention");
      }
    }
    return absl::OkStatus();
  }
  if (on && first_layer < model.num_layers) {
    return keys.Unsupported("sliding_window", *keys.Find("sliding_window"),
                            absl::StrCat("no window, or one as long as the context, ", model.context_length));
  }
  return absl::OkStatus();
}

absl::Status ReadDtype(const JsonKeys& keys, std::string* dtype) {
  *dtype = "float32";
  for (const char* key : {"torch_dtype", "dtype"}) {
    PHX_RETURN_IF_ERROR(keys.OptionalString(key, dtype));
    if (*dtype != "bfloat16" && *dtype != "float16" && *dtype != "float32") {
      return keys.Unsupported(key, json(*dtype), "bfloat16, float16, float32");
    }
  }
  return absl::OkStatus();
}

// Ids past the vocabulary, as a class's defaults are for a small one, are never drawn: as if absent.
absl::Status ReadTokenIds(const JsonKeys& keys, HfConfig& config) {
  const std::string must = "a token's number, 0 or above";
  const auto valid = [](const json& v) { return v.is_number_integer() && v >= 0; };
  const auto drawn = [&](const json& v) { return v < config.model.vocab_size; };
  if (const json* bos = keys.Find("bos_token_id"); bos != nullptr) {
    if (!valid(*bos)) return keys.Bad("bos_token_id", *bos, must);
    if (drawn(*bos)) config.bos = bos->get<int64_t>();
  }
  const json* eos = keys.Find("eos_token_id");
  if (eos == nullptr) return absl::OkStatus();
  for (const json& id : eos->is_array() ? *eos : json::array({*eos})) {
    if (!valid(id)) return keys.Bad("eos_token_id", id, absl::StrCat(must, ", or an array of such"));
    if (drawn(id)) config.eos.push_back(id.get<int64_t>());
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<HfConfig> HfConfigFromJson(const json& object, const std::string& name) {
  if (!object.is_object()) {
    return absl::InvalidArgumentError(
        absl::StrCat(name, ": holds ", ShowJson(object), ", must be an object"));
  }
  const JsonKeys keys(object, name);
  PHX_ASSIGN_OR_RETURN(const HfClass* hf_class, FindClass(keys));
  HfConfig config;
  config.class_name = hf_class->class_name;
  ModelConfig& model = config.model;
  model.architecture = hf_class->architecture;
  PHX_RETURN_IF_ERROR(keys.OptionalString("_name_or_path", &model.name));
  PHX_RETURN_IF_ERROR(Only(keys, "hidden_act", "silu"));
  for (const char* key : {"mlp_bias", "lm_head_bias", "is_encoder_decoder", "add_cross_attention"}) {
    PHX_RETURN_IF_ERROR(Only(keys, key, false));
  }
  // Qwen2's class has its biases whatever the key says.
  model.qkv_bias = hf_class->kind == Kind::kQwen2;
  if (!model.qkv_bias) PHX_RETURN_IF_ERROR(Only(keys, "attention_bias", false));

  PHX_RETURN_IF_ERROR(keys.Int("num_hidden_layers", 1, kMaxLayers, &model.num_layers));
  PHX_RETURN_IF_ERROR(keys.Int("hidden_size", 1, kMaxSize, &model.hidden_size));
  PHX_RETURN_IF_ERROR(keys.Int("intermediate_size", 1, kMaxSize, &model.ffn_size));
  PHX_RETURN_IF_ERROR(keys.Int("vocab_size", 1, kMaxSize, &model.vocab_size));
  PHX_RETURN_IF_ERROR(keys.Int("max_position_embeddings", 1, kMaxSize, &model.context_length));
  double eps = hf_class->rms_eps;
  PHX_RETURN_IF_ERROR(keys.OptionalPositive("rms_norm_eps", &eps));
  model.rms_eps = static_cast<float>(eps);
  PHX_RETURN_IF_ERROR(keys.OptionalBool("tie_word_embeddings", &model.tied_embeddings));
  PHX_RETURN_IF_ERROR(hf_class->kind == Kind::kDeepseekV3 ? ReadDeepseek(keys, model)
                                                          : ReadAttention(keys, model));
  PHX_RETURN_IF_ERROR(CheckWindow(keys, hf_class->kind, model));
  PHX_RETURN_IF_ERROR(internal::ReadHfRope(keys, hf_class->kind == Kind::kPhi3, model));
  PHX_RETURN_IF_ERROR(internal::ReadHfQuantisation(keys, model));
  PHX_RETURN_IF_ERROR(ReadDtype(keys, &config.dtype));
  PHX_RETURN_IF_ERROR(ReadTokenIds(keys, config));
  return config;
}

absl::StatusOr<HfConfig> ReadHfConfig(const std::string& directory) {
  const std::string path = directory + "/config.json";
  PHX_ASSIGN_OR_RETURN(const json object, ReadJsonFile(path, kMaxConfigBytes));
  return HfConfigFromJson(object, path);
}

absl::StatusOr<ModelConfig> ModelConfigFromHf(const std::string& directory) {
  PHX_ASSIGN_OR_RETURN(HfConfig config, ReadHfConfig(directory));
  return std::move(config.model);
}

}  // namespace phalanx
