#include "worker/gguf_names.h"

#include <charconv>
#include <string>
#include <utility>

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
    {"post_attention_layernorm", "ffn_norm"},
    {"mlp.gate_proj", "ffn_gate"},
    {"mlp.up_proj", "ffn_up"},
    {"mlp.gate_up_proj", "ffn_up"},
    {"mlp.down_proj", "ffn_down"},
};

}  // namespace

TensorPlace GgufPlaceOf(std::string_view /*architecture*/, std::string_view hf_name) {
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
  for (const Name& name : kLayerNames) {
    if (stem.substr(end + 1) == name.hf) {
      return {absl::StrCat("blk.", ToAbsl(layer), ".", ToAbsl(name.gguf), ToAbsl(suffix))};
    }
  }
  return {std::string(hf_name)};
}

}  // namespace phalanx
