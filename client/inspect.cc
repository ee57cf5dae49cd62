#include "client/inspect.h"

#include <algorithm>
#include <cstdio>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "base/memory_estimate.h"
#include "base/shard_plan.h"
#include "base/status_macros.h"
#include "base/strings.h"

namespace phalanx {
namespace {

using nlohmann::ordered_json;

constexpr int kMaxDegree = 8;
constexpr int64_t kDefaultTokens = 32768;

struct KvElements {
  std::string_view name;
  int bytes;        // of an element
  int scale_bytes;  // of the scale of each 32 channels of a head
};
constexpr KvElements kKvElements[] = {{"bf16", 2, 0}, {"f32", 4, 0}, {"fp8", 1, 2}, {"int8", 1, 2}};

struct WeightType {
  std::string_view name;
  WeightFormat format;
};
constexpr WeightType kWeightTypes[] = {{"f32", WeightFormat::kF32},
                                       {"bf16", WeightFormat::kBf16},
                                       {"fp8", WeightFormat::kFp8},
                                       {"int4", WeightFormat::kInt4}};

absl::Status Annotate(const absl::Status& status, const std::string& path) {
  return absl::Status(status.code(), absl::StrCat(path, ": ", status.message()));
}

// Null for what the files do not tell.
ordered_json OrNull(int64_t value) { return value > 0 ? ordered_json(value) : ordered_json(); }

ordered_json RopeReport(const ModelConfig& c) {
  if (c.rope.empty()) return nullptr;
  static constexpr const char* kKinds[] = {"plain", "llama3", "longrope", "yarn"};
  const RopeConfig& rope = c.rope[0];
  ordered_json out = {{"kind", kKinds[static_cast<int>(c.rope_scaling)]},
                      {"theta", rope.theta},
                      {"rotary_channels", rope.rotary_dim}};
  if (c.rope_scaling == RopeScaling::kNone && !rope.freq_factors.empty()) {
    // A GGUF file of Llama 3 holds the divisors and not what they were made of.
    out["kind"] = "divisors";
    out["largest_divisor"] = *std::max_element(rope.freq_factors.begin(), rope.freq_factors.end());
  }
  if (c.rope_factor != 1) out["factor"] = c.rope_factor;
  if (c.original_context_length > 0) out["original_context_length"] = c.original_context_length;
  if (rope.attention_factor != 1) out["attention_factor"] = rope.attention_factor;
  if (c.softmax_factor != 1) out["softmax_factor"] = c.softmax_factor;
  return out;
}

ordered_json ArchitectureReport(const ModelFacts& facts) {
  const ModelConfig& c = facts.config;
  ordered_json out;
  out["architecture"] = c.architecture;
  if (!facts.class_name.empty()) out["class"] = facts.class_name;
  out["servable"] = facts.not_servable.empty();
  if (!facts.not_servable.empty()) out["not_servable_because"] = facts.not_servable;
  if (!c.name.empty()) out["name"] = c.name;
  out["parameters"] = facts.weights.total().parameters;
  if (facts.mtp_parameters > 0) out["mtp_parameters"] = facts.mtp_parameters;
  out["layers"] = OrNull(c.num_layers);
  if (c.num_mtp_layers > 0) out["mtp_layers"] = c.num_mtp_layers;
  out["hidden_size"] = OrNull(c.hidden_size);
  out["attention"] = {{"query_heads", OrNull(c.num_heads)},
                      {"kv_heads", OrNull(c.num_kv_heads)},
                      {"key_channels", OrNull(c.key_dim)},
                      {"value_channels", OrNull(c.value_dim)},
                      {"qkv_bias", c.qkv_bias}};
  if (c.mla) {
    out["attention"]["mla"] = {{"query_latent", c.mla->q_lora_rank},
                               {"kv_latent", c.mla->kv_lora_rank},
                               {"plain_channels", c.mla->nope_dim},
                               {"rope_channels", c.mla->rope_dim}};
  }
  out["ffn_size"] = OrNull(c.ffn_size);
  if (c.moe) {
    out["experts"] = {{"number", c.moe->num_experts},
                      {"per_token", c.moe->experts_per_token},
                      {"ffn_size", c.moe->expert_ffn_size},
                      {"shared", c.moe->num_shared_experts},
                      {"groups", c.moe->num_groups},
                      {"groups_per_token", c.moe->topk_groups},
                      {"first_dense_layers", c.moe->first_dense_layers},
                      {"scaling_factor", c.moe->scaling_factor}};
  }
  out["vocabulary"] = OrNull(c.vocab_size);
  out["tied_embeddings"] = c.tied_embeddings;
  out["context_length"] = OrNull(c.context_length);
  out["rope"] = RopeReport(c);
  return out;
}

void AddWeights(const ModelFacts& facts, ordered_json& report) {
  ordered_json& weights = report["weights"];
  weights["bytes"] = facts.weights.total().bytes;
  weights["source"] = facts.tensor_types.empty() ? "config" : "tensors";
  if (!facts.dtype.empty()) weights["dtype"] = facts.dtype;
  if (facts.config.fp8) {
    weights["fp8_blocks"] = {facts.config.fp8->rows, facts.config.fp8->cols};
  }
  ordered_json types = ordered_json::object();
  for (const auto& [type, of_type] : facts.tensor_types) {
    types[type] = {{"tensors", of_type.tensors}, {"bytes", of_type.bytes}};
  }
  weights["types"] = std::move(types);
}

void AddText(const ModelFacts& facts, ordered_json& report) {
  report["tokenizer"] = nullptr;
  if (facts.tokenizer) {
    ordered_json special = ordered_json::array();
    report["tokenizer"] = {{"kind", facts.tokenizer->kind},
                           {"pre", facts.tokenizer->pre},
                           {"tokens", facts.tokenizer->vocab_size},
                           {"merges", facts.tokenizer->merges}};
  }
  report["special_tokens"] = ordered_json::array();
  for (const TokenFacts& token : facts.special_tokens) {
    report["special_tokens"].push_back({{"role", token.role}, {"id", token.id}, {"text", token.text}});
  }
  report["chat_template"] = nullptr;
  if (facts.chat_template) {
    const TemplateFacts& t = *facts.chat_template;
    report["chat_template"] = {{"source", t.source},
                               {"bytes", t.bytes},
                               {"system", t.system},
                               {"tools", t.tools},
                               {"thinking", t.thinking}};
  }
  report["reasoning"] = nullptr;
  if (facts.reasoning) {
    const ReasoningFacts& r = *facts.reasoning;
    report["reasoning"] = {{"family", r.family}, {"open", r.open}, {"close", r.close}, {"found_in", r.where}};
  }
  report["generation"] = ordered_json::object();
  for (const auto& [key, value] : facts.generation) report["generation"][key] = value;
}

// What keeps the memory from being computed; empty: nothing.
std::string MissingForMemory(const ModelConfig& c) {
  const std::pair<const char*, int> needed[] = {
      {"layers", c.num_layers},    {"query heads", c.num_heads},    {"KV heads", c.num_kv_heads},
      {"key channels", c.key_dim}, {"value channels", c.value_dim}, {"vocabulary", c.vocab_size},
      {"FFN size", c.ffn_size},
  };
  for (const auto& [name, value] : needed) {
    if (value < 1) return absl::StrCat("the file does not give one number for its ", name);
  }
  if (c.num_heads % c.num_kv_heads != 0) return "its query heads are no multiple of its KV heads";
  return "";
}

ordered_json Pair(const Range& range) { return {range.begin, range.end}; }

// What each rank of one degree holds: ranges [begin, end).
absl::StatusOr<ordered_json> RankRows(const ModelConfig& c, const MemoryOptions& options, int degree,
                                      int hosts, const MemoryEstimate& estimate) {
  PHX_ASSIGN_OR_RETURN(const ShardPlan plan, MakeShardPlan(c, options.num_shards, degree));
  ordered_json rows = ordered_json::array();
  for (int r = 0; r < degree; ++r) {
    const auto at = static_cast<size_t>(r);
    const Rank& rank = plan.ranks[at];
    ordered_json row = {{"rank", r}};
    if (hosts > 1) row["host"] = r * hosts / degree;
    row["shards"] = Pair(rank.shards);
    row["query_heads"] = Pair(rank.heads);
    // The latent of MLA is one for all heads, whole on every rank.
    if (!c.mla) row["kv_heads"] = Pair(rank.kv_heads);
    row["ffn_columns"] = Pair(rank.ffn);
    if (c.moe) {
      row["experts"] = Pair(rank.experts);
      row["shared_expert_columns"] = Pair(rank.shared_ffn);
    }
    row["vocabulary_rows"] = Pair(rank.vocab);
    row["weight_bytes"] = estimate.ranks[at].weight_bytes;
    row["kv_bytes_per_token"] = estimate.ranks[at].kv_bytes_per_token;
    rows.push_back(std::move(row));
  }
  return rows;
}

absl::Status AddMemory(const ModelFacts& facts, const ClientConfig& config, ordered_json& report) {
  const ModelConfig& c = facts.config;
  MemoryOptions options;
  const int only = config.degree;  // 0: all of the usual degrees
  options.num_shards = config.shards == 0 ? std::max(kDefaultShards, only) : config.shards;
  options.tokens = config.context_length == 0 ? kDefaultTokens : config.context_length;
  if (!config.device_memory.empty()) {
    PHX_ASSIGN_OR_RETURN(options.device_bytes, ParseByteSize(config.device_memory));
  }
  for (const KvElements& type : kKvElements) {
    if (type.name != config.kv_dtype) continue;
    options.kv_element_bytes = type.bytes;
    options.kv_scale_bytes = type.scale_bytes;
  }
  if (c.mla && options.kv_scale_bytes > 0) {
    return absl::InvalidArgumentError(absl::StrCat(facts.path, ": --kv-dtype ", config.kv_dtype,
                                                   " is not for latent attention (MLA); bf16 or f32 are"));
  }
  report["memory"] = nullptr;
  if (const std::string missing = MissingForMemory(c); !missing.empty()) {
    report["notes"].push_back(absl::StrCat("memory is not computed: ", missing));
    return absl::OkStatus();
  }
  WeightSizes weights = facts.weights;
  for (const WeightType& type : kWeightTypes) {
    if (type.name != config.weight_dtype) continue;
    if (const absl::Status s = SetFormat(c, type.format, &weights); !s.ok()) return Annotate(s, facts.path);
  }
  if (c.context_length > 0 && options.tokens > c.context_length) {
    report["notes"].push_back(absl::StrCat("sequences of ", c.context_length,
                                           " tokens, the model's context, not ", options.tokens));
    options.tokens = c.context_length;
  }
  ordered_json ranks = ordered_json::array();
  const int first = only > 0 ? only : 1;
  const int last = only > 0 ? only : std::min(kMaxDegree, options.num_shards);
  for (int degree = first; degree <= last; ++degree) {
    const absl::StatusOr<MemoryEstimate> estimate = EstimateMemory(c, weights, options, degree);
    if (!estimate.ok()) return Annotate(estimate.status(), facts.path);
    const MemoryEstimate& e = *estimate;
    ordered_json row = {
        {"ranks", degree}, {"weight_bytes", e.weight_bytes}, {"kv_bytes_per_token", e.kv_bytes_per_token}};
    if (options.device_bytes > 0) {
      row["sequences"] = e.sequences;
      row["tokens"] = e.tokens;
    }
    PHX_ASSIGN_OR_RETURN(row["of_rank"], RankRows(c, options, degree, config.hosts, e));
    ranks.push_back(std::move(row));
  }
  ordered_json memory = {{"weights", config.weight_dtype},
                         {"kv", config.kv_dtype},
                         {"shards", options.num_shards},
                         {"tokens", options.tokens}};
  if (config.hosts > 1) memory["hosts"] = config.hosts;
  if (options.device_bytes > 0) memory["device_bytes"] = options.device_bytes;
  memory["ranks"] = std::move(ranks);
  report["memory"] = std::move(memory);
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<int64_t> ParseByteSize(std::string_view text) {
  struct Unit {
    std::string_view name;
    double bytes;
  };
  static constexpr Unit kUnits[] = {{"KiB", 1024.0},       {"MiB", 1048576.0},
                                    {"GiB", 1073741824.0}, {"TiB", 1099511627776.0},
                                    {"kB", 1e3},           {"KB", 1e3},
                                    {"MB", 1e6},           {"GB", 1e9},
                                    {"TB", 1e12},          {"B", 1}};
  constexpr double kMax = 1125899906842624.0;  // 1 PiB
  for (const Unit& unit : kUnits) {
    if (text.size() <= unit.name.size() || text.substr(text.size() - unit.name.size()) != unit.name) continue;
    double number = 0;
    if (!absl::SimpleAtod(ToAbsl(text.substr(0, text.size() - unit.name.size())), &number)) break;
    const double bytes = number * unit.bytes;
    if (!(bytes >= 1 && bytes <= kMax)) break;
    return static_cast<int64_t>(bytes);
  }
  return absl::InvalidArgumentError(
      absl::StrCat(Quote(text), " is no size from 1B to 1024TiB with its unit, as 80GB or 79.1GiB"));
}

absl::StatusOr<ordered_json> InspectReport(const ModelFacts& facts, const ClientConfig& config) {
  ordered_json report = {{"path", facts.path}, {"format", facts.format}};
  report.update(ArchitectureReport(facts));
  AddWeights(facts, report);
  AddText(facts, report);
  report["notes"] = facts.notes;
  PHX_RETURN_IF_ERROR(AddMemory(facts, config, report));
  return report;
}

absl::Status RunInspect(const ClientConfig& config) {
  PHX_ASSIGN_OR_RETURN(const ModelFacts facts, ReadModelFacts(config.path));
  PHX_ASSIGN_OR_RETURN(const ordered_json report, InspectReport(facts, config));
  const std::string text = config.json
                               ? report.dump(2, ' ', false, ordered_json::error_handler_t::replace) + "\n"
                               : RenderReport(report);
  std::fputs(text.c_str(), stdout);
  return absl::OkStatus();
}

}  // namespace phalanx
