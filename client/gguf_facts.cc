// A model's facts from its GGUF file.
#include <algorithm>
#include <cmath>
#include <initializer_list>
#include <limits>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "base/gguf.h"
#include "base/reasoning.h"
#include "base/status_macros.h"
#include "base/strings.h"
#include "client/model_facts.h"

namespace phalanx {
namespace {

// Reads the keys that all architectures share, without knowing this one: what is absent, or no number for all
// layers, stays 0.
class GenericReader {
 public:
  GenericReader(const GgufFile& file, std::string architecture)
      : file_(file), architecture_(std::move(architecture)) {}

  absl::StatusOr<ModelConfig> Read() {
    ModelConfig c;
    c.architecture = architecture_;
    MlaConfig mla;
    MoeConfig moe;
    moe.scaling_factor = 1;
    int expert_layers_from = 0;
    // The limits of ModelConfigFromGguf.
    constexpr int64_t kMaxLayers = 4096, kMaxHeads = 65536;
    struct Key {
      const char* name;
      int* out;
      int64_t max = kMaxSize;
    };
    const Key sizes[] = {
        {"block_count", &c.num_layers, kMaxLayers},
        {"context_length", &c.context_length},
        {"embedding_length", &c.hidden_size},
        {"feed_forward_length", &c.ffn_size},
        {"attention.head_count", &c.num_heads, kMaxHeads},
        {"attention.head_count_kv", &c.num_kv_heads, kMaxHeads},
        {"attention.key_length", &c.key_dim, kMaxHeads},
        {"attention.value_length", &c.value_dim, kMaxHeads},
        {"attention.q_lora_rank", &mla.q_lora_rank},
        {"attention.kv_lora_rank", &mla.kv_lora_rank},
        {"expert_count", &moe.num_experts, kMaxHeads},
        {"expert_used_count", &moe.experts_per_token},
        {"expert_feed_forward_length", &moe.expert_ffn_size},
        {"expert_shared_count", &moe.num_shared_experts, kMaxHeads},
        {"expert_group_count", &moe.num_groups},
        {"expert_group_used_count", &moe.topk_groups},
        {"leading_dense_block_count", &expert_layers_from, kMaxLayers},
        {"nextn_predict_layers", &c.num_mtp_layers, kMaxLayers},
    };
    for (const Key& key : sizes) PHX_RETURN_IF_ERROR(Size(key.name, key.out, key.max));
    if (c.num_heads > 0) {
      if (c.num_kv_heads == 0 && !Has("attention.head_count_kv")) c.num_kv_heads = c.num_heads;
      if (c.key_dim == 0) c.key_dim = c.hidden_size / c.num_heads;
      if (c.value_dim == 0) c.value_dim = c.hidden_size / c.num_heads;
    }
    if (mla.kv_lora_rank > 0) PHX_RETURN_IF_ERROR(ReadMla(mla, c));
    if (moe.num_experts > 0) {
      moe.first_dense_layers = std::min(expert_layers_from, c.num_layers);
      moe.scaling_factor = Number("expert_weights_scale").value_or(1);
      c.moe = moe;
    }
    if (const GgufTensor* embedding = file_.FindTensor("token_embd.weight");
        embedding != nullptr && embedding->dims.size() == 2 && embedding->dims[1] <= kMaxSize) {
      c.vocab_size = static_cast<int>(embedding->dims[1]);
      c.tied_embeddings = file_.FindTensor("output.weight") == nullptr;
    }
    c.qkv_bias = file_.FindTensor("blk.0.attn_q.bias") != nullptr;
    c.rms_eps = static_cast<float>(Number("attention.layer_norm_rms_epsilon").value_or(0));
    PHX_RETURN_IF_ERROR(ReadRope(c));
    return c;
  }

 private:
  static constexpr int64_t kMaxSize = int64_t{1} << 30;

  std::string Name(std::string_view key) const { return architecture_ + "." + std::string(key); }
  bool Has(std::string_view key) const { return file_.FindValue(Name(key)) != nullptr; }

  absl::Status Size(std::string_view key, int* out, int64_t max = kMaxSize) const {
    const GgufValue* value = file_.FindValue(Name(key));
    if (value == nullptr ||
        !(std::holds_alternative<uint64_t>(*value) || std::holds_alternative<int64_t>(*value))) {
      return absl::OkStatus();
    }
    PHX_ASSIGN_OR_RETURN(const int64_t number, file_.GetInt(Name(key)));
    if (number < 0 || number > max) {
      return absl::InvalidArgumentError(
          absl::StrCat(file_.path(), ": ", Name(key), " is ", number, ", must be 0 to ", max));
    }
    *out = static_cast<int>(number);
    return absl::OkStatus();
  }
  std::optional<double> Number(std::string_view key) const {
    const GgufValue* value = file_.FindValue(Name(key));
    const auto* number = value == nullptr ? nullptr : std::get_if<double>(value);
    return number == nullptr || !std::isfinite(*number) ? std::nullopt : std::optional(*number);
  }

  // Newer files give the latent's widths as key_length and value_length, and those of a head apart.
  absl::Status ReadMla(MlaConfig mla, ModelConfig& c) const {
    PHX_RETURN_IF_ERROR(Size("attention.key_length_mla", &c.key_dim, 65536));
    PHX_RETURN_IF_ERROR(Size("attention.value_length_mla", &c.value_dim, 65536));
    PHX_RETURN_IF_ERROR(Size("rope.dimension_count", &mla.rope_dim));
    mla.nope_dim = std::max(0, c.key_dim - mla.rope_dim);
    c.num_kv_heads = c.num_heads;
    c.mla = mla;
    return absl::OkStatus();
  }

  absl::Status ReadRope(ModelConfig& c) const {
    if (!Has("rope.freq_base") && !Has("rope.dimension_count")) return absl::OkStatus();
    RopeConfig rope;
    rope.theta = Number("rope.freq_base").value_or(10000);
    rope.rotary_dim = c.mla ? c.mla->rope_dim : c.key_dim;
    PHX_RETURN_IF_ERROR(Size("rope.dimension_count", &rope.rotary_dim));
    rope.attention_factor = static_cast<float>(Number("rope.scaling.attn_factor").value_or(1));
    PHX_RETURN_IF_ERROR(Size("rope.scaling.original_context_length", &c.original_context_length));
    c.rope_factor = Number("rope.scaling.factor").value_or(1);
    const GgufValue* type = file_.FindValue(Name("rope.scaling.type"));
    const auto* name = type == nullptr ? nullptr : std::get_if<std::string_view>(type);
    c.rope = {rope};
    if (file_.FindTensor("rope_factors_long.weight") != nullptr) {
      c.rope_scaling = RopeScaling::kLongRope;
      c.rope = {rope, rope};
      if (c.original_context_length > 0 && c.rope_factor == 1) {
        c.rope_factor = static_cast<double>(c.context_length) / c.original_context_length;
      }
    } else if (name != nullptr && *name == "yarn") {
      c.rope_scaling = RopeScaling::kYarn;
    } else if (file_.FindTensor("rope_freqs.weight") != nullptr) {
      c.rope_scaling = RopeScaling::kLlama3;
    }
    return absl::OkStatus();
  }

  const GgufFile& file_;
  const std::string architecture_;
};

std::string_view StringOr(const GgufFile& file, std::string_view key, std::string_view otherwise) {
  const auto value = file.GetString(key);
  return value.ok() ? *value : otherwise;
}

void ReadTokenizer(const GgufFile& file, ModelFacts& facts) {
  const auto tokens = file.GetStrings("tokenizer.ggml.tokens");
  if (!tokens.ok()) {
    facts.notes.push_back("the file has no tokenizer");
    return;
  }
  TokenizerFacts tokenizer;
  tokenizer.kind = StringOr(file, "tokenizer.ggml.model", "");
  tokenizer.pre = StringOr(file, "tokenizer.ggml.pre", "");
  tokenizer.vocab_size = static_cast<int64_t>(tokens->size());
  if (const auto merges = file.GetStrings("tokenizer.ggml.merges"); merges.ok()) {
    tokenizer.merges = static_cast<int64_t>(merges->size());
  }
  facts.tokenizer = tokenizer;
  for (const char* role : {"bos", "eos", "eot", "eom", "padding"}) {
    const auto id = file.GetInt(absl::StrCat("tokenizer.ggml.", role, "_token_id"));
    if (!id.ok()) continue;
    const bool known = *id >= 0 && *id < tokenizer.vocab_size;
    facts.special_tokens.push_back({role, *id, known ? std::string((*tokens)[*id]) : ""});
    if (!known) {
      facts.notes.push_back(
          absl::StrCat("tokenizer.ggml.", role, "_token_id ", *id, " is no token of the vocabulary"));
    }
  }
  for (const ReasoningFamily& family : ReasoningFamilies()) {
    const auto open = std::find(tokens->begin(), tokens->end(), family.open);
    const auto close = std::find(tokens->begin(), tokens->end(), family.close);
    if (open == tokens->end() || close == tokens->end()) continue;
    facts.reasoning = {std::string(family.name), std::string(family.open), std::string(family.close),
                       absl::StrCat("tokens ", open - tokens->begin(), " and ", close - tokens->begin())};
  }
}

// llama.cpp writes the generation config so.
void ReadGeneration(const GgufFile& file, ModelFacts& facts) {
  constexpr std::string_view kPrefix = "general.sampling.";
  for (const auto& [key, value] : file.metadata()) {
    if (key.substr(0, kPrefix.size()) != kPrefix) continue;
    const std::string name = key.substr(kPrefix.size());
    if (const auto* u = std::get_if<uint64_t>(&value)) facts.generation.emplace_back(name, *u);
    if (const auto* i = std::get_if<int64_t>(&value)) facts.generation.emplace_back(name, *i);
    if (const auto* d = std::get_if<double>(&value)) facts.generation.emplace_back(name, *d);
    if (const auto* b = std::get_if<bool>(&value)) facts.generation.emplace_back(name, *b);
  }
}

}  // namespace

absl::StatusOr<ModelFacts> ReadGgufFacts(const std::string& path) {
  PHX_ASSIGN_OR_RETURN(const std::unique_ptr<GgufFile> file,
                       GgufFile::Open(path, GgufFile::TensorTypes::kAny));
  ModelFacts facts;
  facts.path = path;
  facts.format = "GGUF";
  PHX_ASSIGN_OR_RETURN(const std::string_view architecture, file->GetString("general.architecture"));

  // As it would be opened to be served: without types that cannot be read.
  absl::Status status;
  if (auto readable = GgufFile::Open(path); readable.ok()) {
    auto config = ModelConfigFromGguf(**readable);
    status = config.status();
    if (config.ok()) facts.config = *std::move(config);
  } else {
    status = readable.status();
  }
  if (absl::IsUnimplemented(status)) {
    facts.not_servable = std::string(status.message());
    if (facts.not_servable.rfind(path + ": ", 0) == 0) facts.not_servable.erase(0, path.size() + 2);
    PHX_ASSIGN_OR_RETURN(facts.config, GenericReader(*file, std::string(architecture)).Read());
    facts.config.name = StringOr(*file, "general.name", "");
  } else if (!status.ok()) {
    return status;
  }

  TensorCounter counter(&facts);
  for (const GgufTensor& tensor : file->tensors()) {
    int64_t elements = 1;
    for (const int64_t dim : tensor.dims) elements *= dim;  // the reader checked the product
    PHX_RETURN_IF_ERROR(counter.Add(tensor.name, tensor.type_name(), elements, tensor.bytes));
  }
  ReadTokenizer(*file, facts);
  ReadGeneration(*file, facts);
  if (const auto text = file->GetString("tokenizer.chat_template"); text.ok()) {
    facts.chat_template = DescribeTemplate("tokenizer.chat_template", *text);
    for (const ReasoningFamily& family : ReasoningFamilies()) {
      if (facts.reasoning || text->find(family.close) == std::string_view::npos) continue;
      facts.reasoning = {std::string(family.name), std::string(family.open), std::string(family.close),
                         "the chat template"};
    }
  }
  return facts;
}

}  // namespace phalanx
