// Llama (GGUF architecture "llama": Llama 2 and 3, SmolLM2, ...): pre-norm layers of grouped-query attention
// and a gated MLP. Query and key rows lie permuted in the file, so that RoPE turns neighbouring channels.
// source: https://arxiv.org/abs/2302.13971
#include <utility>

#include "absl/strings/str_cat.h"
#include "base/status_macros.h"
#include "worker/models/blocks.h"
#include "worker/weights.h"

namespace phalanx {
namespace {

struct LayerTensors {
  const float* attention_norm = nullptr;
  TpAttention::Tensors attention;
  const float* mlp_norm = nullptr;
  TpMlp::Tensors mlp;
};

struct Tensors {
  WeightSource embedding;
  std::vector<LayerTensors> layers;
  const float* norm = nullptr;
  WeightSource head;
};

absl::StatusOr<Tensors> FindTensors(const GgufFile& file, const ModelConfig& config) {
  const int64_t hidden = config.hidden_size;
  const int64_t q_rows = int64_t{config.num_heads} * config.key_dim;
  const int64_t k_rows = int64_t{config.num_kv_heads} * config.key_dim;
  const int64_t v_rows = int64_t{config.num_kv_heads} * config.value_dim;
  TensorFinder finder(file);
  Tensors tensors;
  tensors.embedding = finder.Matrix("token_embd.weight", config.vocab_size, hidden);
  for (int i = 0; i < config.num_layers; ++i) {
    const auto name = [i](const char* part) { return absl::StrCat("blk.", i, ".", part); };
    LayerTensors layer;
    layer.attention_norm = finder.Vector(name("attn_norm.weight"), hidden);
    layer.attention.q = finder.Matrix(name("attn_q.weight"), q_rows, hidden);
    layer.attention.k = finder.Matrix(name("attn_k.weight"), k_rows, hidden);
    layer.attention.v = finder.Matrix(name("attn_v.weight"), v_rows, hidden);
    layer.attention.q_bias = finder.OptionalVector(name("attn_q.bias"), q_rows);
    layer.attention.k_bias = finder.OptionalVector(name("attn_k.bias"), k_rows);
    layer.attention.v_bias = finder.OptionalVector(name("attn_v.bias"), v_rows);
    layer.attention.output =
        finder.Matrix(name("attn_output.weight"), hidden, int64_t{config.num_heads} * config.value_dim);
    layer.mlp_norm = finder.Vector(name("ffn_norm.weight"), hidden);
    layer.mlp.gate = finder.Matrix(name("ffn_gate.weight"), config.ffn_size, hidden);
    layer.mlp.up = finder.Matrix(name("ffn_up.weight"), config.ffn_size, hidden);
    layer.mlp.down = finder.Matrix(name("ffn_down.weight"), hidden, config.ffn_size);
    tensors.layers.push_back(layer);
  }
  tensors.norm = finder.Vector("output_norm.weight", hidden);
  tensors.head =
      config.tied_embeddings ? tensors.embedding : finder.Matrix("output.weight", config.vocab_size, hidden);
  finder.Allow("rope_freqs.weight");  // read with the config
  PHX_RETURN_IF_ERROR(finder.Finish());
  return tensors;
}

struct Layer {
  TpNorm attention_norm;
  TpAttention attention;
  TpNorm mlp_norm;
  TpMlp mlp;
};

class Llama : public Model {
 public:
  Llama(const ModelContext& context, const WeightSource& embedding)
      : context_(context), embedding_(context, embedding) {}

  absl::Status Init(const Tensors& tensors) {
    PHX_ASSIGN_OR_RETURN(workspace_, Workspace::Create(context_));
    for (RopeConfig rope : context_.config->rope) {
      rope.interleaved = true;
      PHX_ASSIGN_OR_RETURN(rope_tables_.emplace_back(),
                           context_.ops->MakeRopeTable(rope, context_.context_length));
      rope_table_views_.push_back(rope_tables_.back().get());
    }
    for (const LayerTensors& from : tensors.layers) {
      Layer layer;
      PHX_ASSIGN_OR_RETURN(layer.attention_norm, TpNorm::Create(context_, from.attention_norm));
      PHX_ASSIGN_OR_RETURN(layer.attention,
                           TpAttention::Create(context_, static_cast<int>(layers_.size()), from.attention));
      PHX_ASSIGN_OR_RETURN(layer.mlp_norm, TpNorm::Create(context_, from.mlp_norm));
      PHX_ASSIGN_OR_RETURN(layer.mlp, TpMlp::Create(context_, from.mlp));
      weight_bytes_ += layer.attention_norm.weight_bytes() + layer.attention.weight_bytes() +
                       layer.mlp_norm.weight_bytes() + layer.mlp.weight_bytes();
      layers_.push_back(std::move(layer));
    }
    PHX_ASSIGN_OR_RETURN(head_, TpHead::Create(context_, tensors.norm, tensors.head));
    weight_bytes_ += head_.weight_bytes();
    return absl::OkStatus();
  }

  KvCacheShape kv_shape(int block_size) const override {
    const ModelConfig& config = *context_.config;
    return {.num_layers = config.num_layers,
            .num_kv_heads = static_cast<int>(context_.plan->ranks[context_.rank].kv_heads.size()),
            .key_dim = config.key_dim,
            .value_dim = config.value_dim,
            .block_size = block_size};
  }
  int64_t weight_bytes() const override { return weight_bytes_; }
  int64_t workspace_bytes() const override { return workspace_->bytes(); }

  absl::Status Forward(const ForwardBatch& batch, KvCache* cache, float* logits) override {
    Workspace& work = *workspace_;
    work.Begin(batch);
    PHX_RETURN_IF_ERROR(embedding_.Forward(batch, work.residual()));
    const float* add = nullptr;
    for (const Layer& layer : layers_) {
      PHX_RETURN_IF_ERROR(layer.attention_norm.Forward(work.residual(), add, nullptr, work.normed()));
      PHX_RETURN_IF_ERROR(layer.attention.Forward(batch, rope_table_views_, cache, &work));
      add = work.reduced();
      PHX_RETURN_IF_ERROR(layer.mlp_norm.Forward(work.residual(), add, nullptr, work.normed()));
      PHX_RETURN_IF_ERROR(layer.mlp.Forward(&work));
    }
    return head_.Forward(batch, &work, logits);
  }

 private:
  const ModelContext context_;
  std::unique_ptr<Workspace> workspace_;
  std::vector<std::unique_ptr<RopeTable>> rope_tables_;
  std::vector<const RopeTable*> rope_table_views_;
  TpEmbedding embedding_;
  std::vector<Layer> layers_;
  TpHead head_;
  int64_t weight_bytes_ = 0;
};

}  // namespace

absl::StatusOr<std::unique_ptr<Model>> CreateLlama(const ModelContext& context) {
  PHX_ASSIGN_OR_RETURN(const Tensors tensors, FindTensors(*context.file, *context.config));
  auto model = std::make_unique<Llama>(context, tensors.embedding);
  PHX_RETURN_IF_ERROR(model->Init(tensors));
  return model;
}

}  // namespace phalanx
