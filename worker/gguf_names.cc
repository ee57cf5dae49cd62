#include "worker/gguf_names.h"

#include <string>
#include <utility>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "base/strings.h"

namespace phalanx {
namespace {

struct Name {
  std::string_view hf, gguf;
};

constexpr Name kModelNames[] = {
    {"model.embed_tokens", "token_embd"},
    {"model.norm", "output_norm"},
    {"lm_head", "output"},
};

// After "model.layers.N." and "blk.N.".
constexpr Name kLayerNames[] = {
    {"input_layernorm", "attn_norm"},
    {"self_attn.q_proj", "attn_q"},
    {"self_attn.k_proj", "attn_k"},
    {"self_attn.v_proj", "attn_v"},
    {"self_attn.qkv_proj", "attn_qkv"},
    {"self_attn.o_proj", "attn_output"},
    {"self_attn.q_a_proj", "attn_q_a"},
    {"self_attn.q_a_layernorm", "attn_q_a_norm"},
    {"self_attn.q_b_proj", "attn_q_b"},
    {"self_attn.kv_a_proj_with_mqa", "attn_kv_a_mqa"},
    {"self_attn.kv_a_layernorm", "attn_kv_a_norm"},
    {"self_attn.kv_b_proj", "attn_kv_b"},
    {"self_attn.k_b_proj", "attn_k_b"},
    {"self_attn.v_b_proj", "attn_v_b"},
    {"post_attention_layernorm", "ffn_norm"},
    {"mlp.gate_proj", "ffn_gate"},
    {"mlp.up_proj", "ffn_up"},
    {"mlp.gate_up_proj", "ffn_up"},
    {"mlp.down_proj", "ffn_down"},
    {"mlp.gate", "ffn_gate_inp"},
    {"mlp.shared_experts.gate_proj", "ffn_gate_shexp"},
    {"mlp.shared_experts.up_proj", "ffn_up_shexp"},
    {"mlp.shared_experts.down_proj", "ffn_down_shexp"},
};

// A tensor of all slices; the slice's number stands between `before` and `after`.
struct SlicedName {
  std::string_view before, after, gguf;
  bool heads;  // else experts
};
constexpr SlicedName kSlicedNames[] = {
    {"mlp.experts.", ".gate_proj", "ffn_gate_exps", false},
    {"mlp.experts.", ".up_proj", "ffn_up_exps", false},
    {"mlp.experts.", ".down_proj", "ffn_down_exps", false},
    {"self_attn.k_b_proj.", "", "attn_k_b", true},
    {"self_attn.v_b_proj.", "", "attn_v_b", true},
};

TensorPlace LayerPlace(const ModelConfig& config, std::string_view stem, std::string_view suffix,
                       const std::string& block) {
  const auto full = [&](std::string_view name) { return absl::StrCat(block, ToAbsl(name), ToAbsl(suffix)); };
  if (stem == "mlp.gate" && suffix == ".e_score_correction_bias") return {block + "exp_probs_b.bias"};
  for (const Name& name : kLayerNames) {
    if (stem == name.hf) return {full(name.gguf)};
  }
  for (const SlicedName& name : kSlicedNames) {
    if (!stem.starts_with(name.before) || !stem.ends_with(name.after) ||
        stem.size() < name.before.size() + name.after.size()) {
      continue;
    }
    const std::string_view number =
        stem.substr(name.before.size(), stem.size() - name.before.size() - name.after.size());
    const int64_t slices = name.heads ? config.num_heads : config.moe ? config.moe->num_experts : 0;
    int64_t slice = -1;
    if (absl::SimpleAtoi(ToAbsl(number), &slice) && slice >= 0 && slice < slices) {
      return {full(name.gguf), slice, slices};
    }
  }
  return {};
}

}  // namespace

TensorPlace GgufPlaceOf(const ModelConfig& config, std::string_view hf_name) {
  const size_t dot = hf_name.rfind('.');
  if (dot == std::string_view::npos) return {std::string(hf_name)};
  const std::string_view stem = hf_name.substr(0, dot), suffix = hf_name.substr(dot);
  for (const Name& name : kModelNames) {
    if (stem == name.hf) return {absl::StrCat(ToAbsl(name.gguf), ToAbsl(suffix))};
  }
  constexpr std::string_view kLayers = "model.layers.";
  if (!stem.starts_with(kLayers)) return {std::string(hf_name)};
  const size_t end = stem.find('.', kLayers.size());
  if (end == std::string_view::npos) return {std::string(hf_name)};
  const std::string_view layer = stem.substr(kLayers.size(), end - kLayers.size());
  TensorPlace place =
      LayerPlace(config, stem.substr(end + 1), suffix, absl::StrCat("blk.", ToAbsl(layer), "."));
  return place.name.empty() ? TensorPlace{std::string(hf_name)} : place;
}

}  // namespace phalanx
