#include "base/memory_estimate.h"

#include <algorithm>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "base/status_macros.h"

namespace phalanx {
namespace {

// Products of a config's numbers: a few of up to 2^30, far from 2^127.
using Wide = __int128;
constexpr Wide kMaxBytes = Wide{1} << 62;

Wide PartParameters(const ModelConfig& c, WeightPart part) {
  const Wide layers = c.num_layers, hidden = c.hidden_size, heads = c.num_heads, kv_heads = c.num_kv_heads;
  const Wide dense_layers = c.moe ? std::min(c.moe->first_dense_layers, c.num_layers) : c.num_layers;
  const Wide expert_layers = layers - dense_layers;
  const Wide bias = c.qkv_bias ? 1 : 0;
  switch (part) {
    case WeightPart::kEmbedding:
      return Wide{c.vocab_size} * hidden;
    case WeightPart::kHead:
      return c.tied_embeddings ? 0 : Wide{c.vocab_size} * hidden;
    case WeightPart::kQuery: {
      const Wide query_in = c.mla && c.mla->q_lora_rank > 0 ? c.mla->q_lora_rank : hidden;
      Wide per_head = c.key_dim * (query_in + bias) + c.value_dim * hidden;
      if (c.mla) per_head += Wide{c.mla->kv_lora_rank} * (c.mla->nope_dim + c.value_dim);
      return layers * heads * per_head;
    }
    case WeightPart::kKeyValue:
      return c.mla ? 0 : layers * kv_heads * (Wide{c.key_dim} + c.value_dim) * (hidden + bias);
    case WeightPart::kFfn:
      return dense_layers * 3 * hidden * c.ffn_size;
    case WeightPart::kExperts:
      return c.moe ? expert_layers * c.moe->num_experts * 3 * hidden * c.moe->expert_ffn_size : 0;
    case WeightPart::kSharedExperts:
      return c.moe ? expert_layers * c.moe->num_shared_experts * 3 * hidden * c.moe->expert_ffn_size : 0;
    case WeightPart::kLatent:
      return c.mla ? layers * hidden * (Wide{c.mla->q_lora_rank} + c.mla->kv_lora_rank + c.mla->rope_dim) : 0;
    case WeightPart::kSmall: {
      Wide small = layers * 2 * hidden + hidden;
      if (c.mla) small += layers * (Wide{c.mla->q_lora_rank} + c.mla->kv_lora_rank);
      if (c.moe) small += expert_layers * c.moe->num_experts * (hidden + 1);
      return small;
    }
  }
  return 0;
}

bool KeptWide(WeightPart part) {
  return part == WeightPart::kEmbedding || part == WeightPart::kHead || part == WeightPart::kSmall;
}

Wide PartBytes(const ModelConfig& c, WeightPart part, Wide parameters, WeightFormat format) {
  if (format == WeightFormat::kF32) return parameters * 4;
  if (format == WeightFormat::kBf16 || KeptWide(part)) return parameters * 2;
  if (format == WeightFormat::kInt4) return (parameters * 17 + 31) / 32;
  // One F32 scale a block; blocks cut at the edges are not counted.
  return c.fp8 ? parameters + parameters * 4 / (Wide{c.fp8->rows} * c.fp8->cols) : parameters;
}

// What of a part a rank holds, as a fraction.
struct Share {
  int64_t held = 1;
  int64_t of = 1;
};

Share ShareOf(WeightPart part, const ModelConfig& c, const Rank& rank) {
  switch (part) {
    case WeightPart::kHead:
      return {rank.vocab.size(), c.vocab_size};
    case WeightPart::kQuery:
      return {rank.heads.size(), c.num_heads};
    case WeightPart::kKeyValue:
      return {rank.kv_heads.size(), c.num_kv_heads};
    case WeightPart::kFfn:
      return {rank.ffn.size(), c.ffn_size};
    case WeightPart::kExperts:
      if (!c.moe) return {};
      return {rank.experts.size(), c.moe->num_experts};
    case WeightPart::kSharedExperts:
      if (!c.moe || c.moe->num_shared_experts == 0) return {};
      return {rank.shared_ffn.size(), int64_t{c.moe->num_shared_experts} * c.moe->expert_ffn_size};
    case WeightPart::kEmbedding:
    case WeightPart::kLatent:
    case WeightPart::kSmall:
      return {};
  }
  return {};
}

absl::Status TooLarge() {
  return absl::InvalidArgumentError(
      "the model's sizes multiply to more than 2^62 parameters or bytes; they cannot be right");
}

bool Contains(std::string_view name, std::string_view part) {
  return name.find(part) != std::string_view::npos;
}

}  // namespace

WeightSize WeightSizes::total() const {
  WeightSize sum;
  for (const WeightSize& part : parts) {
    sum.parameters += part.parameters;
    sum.bytes += part.bytes;
  }
  return sum;
}

absl::Status SetFormat(const ModelConfig& config, WeightFormat format, WeightSizes* sizes) {
  Wide total = 0;
  for (int i = 0; i < kNumWeightParts; ++i) {
    const auto part = static_cast<WeightPart>(i);
    const Wide bytes = PartBytes(config, part, (*sizes)[part].parameters, format);
    total += bytes;
    if (total > kMaxBytes) return TooLarge();
    (*sizes)[part].bytes = static_cast<int64_t>(bytes);
  }
  return absl::OkStatus();
}

absl::StatusOr<WeightSizes> WeightSizesOf(const ModelConfig& config, WeightFormat format) {
  WeightSizes sizes;
  Wide total = 0;
  for (int i = 0; i < kNumWeightParts; ++i) {
    const auto part = static_cast<WeightPart>(i);
    const Wide parameters = PartParameters(config, part);
    total += parameters;
    if (total > kMaxBytes) return TooLarge();
    sizes[part].parameters = static_cast<int64_t>(parameters);
  }
  PHX_RETURN_IF_ERROR(SetFormat(config, format, &sizes));
  return sizes;
}

WeightPart WeightPartOf(std::string_view name) {
  struct Rule {
    std::string_view in_name;
    WeightPart part;
  };
  // The first that is in the name. GGUF's names and Hugging Face's have nothing in common.
  static constexpr Rule kRules[] = {
      {"norm", WeightPart::kSmall},
      {"token_embd.", WeightPart::kEmbedding},
      {"embed_tokens.", WeightPart::kEmbedding},
      {"lm_head.", WeightPart::kHead},
      {"attn_q_a.", WeightPart::kLatent},
      {"attn_kv_a_mqa.", WeightPart::kLatent},
      {"q_a_proj.", WeightPart::kLatent},
      {"kv_a_proj_with_mqa.", WeightPart::kLatent},
      {"attn_q", WeightPart::kQuery},  // _q, _q_b, _qkv
      {"attn_output.", WeightPart::kQuery},
      {"attn_kv_b.", WeightPart::kQuery},
      {"attn_k_b.", WeightPart::kQuery},
      {"attn_v_b.", WeightPart::kQuery},
      {"attn_k.", WeightPart::kKeyValue},
      {"attn_v.", WeightPart::kKeyValue},
      {"qkv_proj.", WeightPart::kQuery},
      {"kv_b_proj.", WeightPart::kQuery},
      {"q_b_proj.", WeightPart::kQuery},
      {"q_proj.", WeightPart::kQuery},
      {"o_proj.", WeightPart::kQuery},
      {"k_proj.", WeightPart::kKeyValue},
      {"v_proj.", WeightPart::kKeyValue},
      {"_exps.", WeightPart::kExperts},
      {"_shexp.", WeightPart::kSharedExperts},
      {".shared_experts.", WeightPart::kSharedExperts},
      {".experts.", WeightPart::kExperts},
      {"ffn_gate.", WeightPart::kFfn},
      {"ffn_up.", WeightPart::kFfn},
      {"ffn_down.", WeightPart::kFfn},
      {"up_proj.", WeightPart::kFfn},  // gate_up_proj too
      {"gate_proj.", WeightPart::kFfn},
      {"down_proj.", WeightPart::kFfn},
  };
  if (name == "output.weight") return WeightPart::kHead;
  for (const Rule& rule : kRules) {
    if (Contains(name, rule.in_name)) return rule.part;
  }
  return WeightPart::kSmall;
}

int64_t KvChannels(const ModelConfig& config, const Rank& rank) {
  if (rank.heads.size() == 0) return 0;
  const int64_t per_layer = config.mla ? int64_t{config.mla->kv_lora_rank} + config.mla->rope_dim
                                       : rank.kv_heads.size() * (int64_t{config.key_dim} + config.value_dim);
  return config.num_layers * per_layer;
}

int64_t KvGroups(const ModelConfig& config, const Rank& rank) {
  constexpr int64_t kGroup = 32;
  if (rank.heads.size() == 0 || config.mla) return 0;
  const int64_t of_head = (config.key_dim + kGroup - 1) / kGroup + (config.value_dim + kGroup - 1) / kGroup;
  return config.num_layers * rank.kv_heads.size() * of_head;
}

absl::StatusOr<MemoryEstimate> EstimateMemory(const ModelConfig& config, const WeightSizes& weights,
                                              const MemoryOptions& options, int num_ranks) {
  if (options.tokens < 1 || options.kv_element_bytes < 1 || options.device_bytes < 0) {
    return absl::InvalidArgumentError(absl::StrCat(
        "a sequence of ", options.tokens, " tokens, ", options.kv_element_bytes,
        " bytes an element and a device of ", options.device_bytes, " bytes; none may be below 1"));
  }
  PHX_ASSIGN_OR_RETURN(const ShardPlan plan, MakeShardPlan(config, options.num_shards, num_ranks));
  const Wide blocks_per_sequence = (options.tokens + kKvBlockTokens - 1) / kKvBlockTokens;
  MemoryEstimate estimate;
  Wide least_blocks = -1;
  for (const Rank& rank : plan.ranks) {
    Wide bytes = 0;
    for (int i = 0; i < kNumWeightParts; ++i) {
      const auto part = static_cast<WeightPart>(i);
      const Share share = ShareOf(part, config, rank);
      if (share.of < 1) continue;  // a part that the model lacks
      bytes += (Wide{weights[part].bytes} * share.held + share.of - 1) / share.of;
    }
    const Wide kv_bytes = Wide{KvChannels(config, rank)} * options.kv_element_bytes +
                          Wide{KvGroups(config, rank)} * options.kv_scale_bytes;
    if (kv_bytes * kKvBlockTokens * blocks_per_sequence > kMaxBytes || bytes > kMaxBytes) {
      return TooLarge();
    }
    const Wide usable = Wide{options.device_bytes} * 9 / 10 - kReservedBytes - bytes;
    // A rank without a KV head (more ranks than query heads) sets no bound by its cache, only by its weights.
    const Wide blocks = usable <= 0 ? 0 : kv_bytes == 0 ? kMaxBytes : usable / (kv_bytes * kKvBlockTokens);
    if (least_blocks < 0 || blocks < least_blocks) least_blocks = blocks;
    estimate.ranks.push_back({static_cast<int64_t>(bytes), static_cast<int64_t>(kv_bytes)});
    estimate.weight_bytes = std::max(estimate.weight_bytes, static_cast<int64_t>(bytes));
    estimate.kv_bytes_per_token = std::max(estimate.kv_bytes_per_token, static_cast<int64_t>(kv_bytes));
  }
  estimate.sequences = static_cast<int64_t>(least_blocks / blocks_per_sequence);
  estimate.tokens = static_cast<int64_t>(least_blocks * kKvBlockTokens);
  return estimate;
}

}  // namespace phalanx
