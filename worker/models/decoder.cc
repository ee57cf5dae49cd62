#include "worker/models/decoder.h"

#include <atomic>
#include <functional>
#include <utility>

#include "absl/strings/str_cat.h"
#include "base/status_macros.h"

namespace phalanx {
namespace {

struct Tensors {
  WeightSource embedding;
  std::vector<LayerTensors> layers;
  std::vector<float> norm;
  WeightSource head;
};

absl::StatusOr<Tensors> FindTensors(const ModelContext& context, const FindLayer& find_layer) {
  const ModelConfig& config = *context.config;
  TensorFinder finder(*context.checkpoint);
  Tensors tensors;
  tensors.embedding = finder.Matrix("model.embed_tokens", config.vocab_size, config.hidden_size);
  for (int i = 0; i < config.num_layers; ++i) {
    const std::string prefix = absl::StrCat("model.layers.", i, ".");
    LayerTensors layer;
    layer.attention_norm = finder.Vector(prefix + "input_layernorm.weight", config.hidden_size);
    layer.mlp_norm = finder.Vector(prefix + "post_attention_layernorm.weight", config.hidden_size);
    find_layer(finder, i, prefix, &layer);
    tensors.layers.push_back(std::move(layer));
  }
  tensors.norm = finder.Vector("model.norm.weight", config.hidden_size);
  tensors.head = config.tied_embeddings ? tensors.embedding
                                        : finder.Matrix("lm_head", config.vocab_size, config.hidden_size);
  PHX_RETURN_IF_ERROR(finder.Finish());
  return tensors;
}

struct Layer {
  TpNorm attention_norm;
  std::variant<TpAttention, TpMla> attention;
  TpNorm mlp_norm;
  std::variant<TpMlp, TpMoe> mlp;

  int64_t weight_bytes() const {
    const auto bytes = [](const auto& block) { return block.weight_bytes(); };
    return attention_norm.weight_bytes() + mlp_norm.weight_bytes() + std::visit(bytes, attention) +
           std::visit(bytes, mlp);
  }
};

absl::StatusOr<Layer> CreateLayer(const ModelContext& context, int index, const LayerTensors& from) {
  Layer layer;
  const float eps = context.config->rms_eps;
  PHX_ASSIGN_OR_RETURN(layer.attention_norm, TpNorm::Create(context, from.attention_norm, eps));
  if (const auto* mla = std::get_if<TpMla::Tensors>(&from.attention); mla != nullptr) {
    PHX_ASSIGN_OR_RETURN(layer.attention, TpMla::Create(context, index, *mla));
  } else {
    PHX_ASSIGN_OR_RETURN(layer.attention,
                         TpAttention::Create(context, index, std::get<TpAttention::Tensors>(from.attention)));
  }
  PHX_ASSIGN_OR_RETURN(layer.mlp_norm, TpNorm::Create(context, from.mlp_norm, eps));
  if (const auto* moe = std::get_if<TpMoe::Tensors>(&from.mlp); moe != nullptr) {
    PHX_ASSIGN_OR_RETURN(layer.mlp, TpMoe::Create(context, *moe));
  } else {
    PHX_ASSIGN_OR_RETURN(layer.mlp, TpMlp::Create(context, std::get<TpMlp::Tensors>(from.mlp), &Shard::ffn));
  }
  return layer;
}

class Decoder : public Model {
 public:
  Decoder(const ModelContext& context, const WeightSource& embedding)
      : context_(context), embedding_(context, embedding) {}

  absl::Status Init(const Tensors& tensors) {
    PHX_ASSIGN_OR_RETURN(workspace_, Workspace::Create(context_));
    for (const RopeConfig& rope : context_.config->rope) {
      PHX_ASSIGN_OR_RETURN(rope_tables_.emplace_back(),
                           context_.ops->MakeRopeTable(rope, context_.context_length));
      rope_table_views_.push_back(rope_tables_.back().get());
    }
    for (const LayerTensors& from : tensors.layers) {
      PHX_ASSIGN_OR_RETURN(Layer layer, CreateLayer(context_, static_cast<int>(layers_.size()), from));
      weight_bytes_ += layer.weight_bytes();
      layers_.push_back(std::move(layer));
    }
    PHX_ASSIGN_OR_RETURN(head_, TpHead::Create(context_, tensors.norm, tensors.head));
    weight_bytes_ += head_.weight_bytes();
    return absl::OkStatus();
  }

  KvCacheShape kv_shape(int block_size) const override {
    const ModelConfig& config = *context_.config;
    const Rank& rank = context_.plan->ranks[context_.rank];
    if (config.mla) {
      return {.num_layers = config.num_layers,
              .num_kv_heads = rank.heads.size() > 0 ? 1 : 0,
              .key_dim = config.mla->kv_lora_rank + config.mla->rope_dim,
              .value_dim = 0,
              .block_size = block_size};
    }
    return {.num_layers = config.num_layers,
            .num_kv_heads = static_cast<int>(rank.kv_heads.size()),
            .key_dim = config.key_dim,
            .value_dim = config.value_dim,
            .block_size = block_size};
  }
  int64_t weight_bytes() const override { return weight_bytes_; }
  int64_t workspace_bytes() const override { return workspace_->bytes(); }

  absl::Status Forward(const ForwardBatch& batch, KvCache* cache, float* logits) override {
    if (!batch.replays) return Enqueue(batch, cache, logits, /*in_pieces=*/false);
    // What the host does between two blocks cannot be recorded: then it is what lies between.
    if (workspace_->reduces_on_host()) return Enqueue(batch, cache, logits, /*in_pieces=*/true);
    return Replay(batch, 0, nullptr, [&] { return Enqueue(batch, cache, logits, /*in_pieces=*/false); });
  }

 private:
  using Piece = std::function<absl::Status()>;

  // The model's number tells it from others of the same Ops; a collective's sums lie in one of a few places.
  absl::Status Replay(const ForwardBatch& batch, int64_t piece, const float* sums, const Piece& enqueue) {
    return context_.ops->Replay({.key = {batch.num_tokens << 32 | batch.num_logits, number_ << 32 | piece,
                                         static_cast<int64_t>(reinterpret_cast<intptr_t>(sums))},
                                 .sequences = batch.sequences},
                                enqueue);
  }

  absl::Status Enqueue(const ForwardBatch& batch, KvCache* cache, float* logits, bool in_pieces) {
    Workspace& work = *workspace_;
    work.Begin(batch);
    int64_t pieces = 0;
    const auto run = [&](const Piece& piece) {
      return in_pieces ? Replay(batch, ++pieces, work.sums(), piece) : piece();
    };
    // The place of a piece's sums is part of its name; else the norm may still have the last ones to add up.
    const auto run_block = [&](const TpNorm& norm, const auto& of, const Piece& block) -> absl::Status {
      const int products = std::visit([](const auto& b) { return b.products(); }, of);
      const PackedWeight* reader = std::visit([](const auto& b) { return b.reader(); }, of);
      if (in_pieces) PHX_RETURN_IF_ERROR(work.PlaceSums(products));
      PHX_RETURN_IF_ERROR(run([&]() -> absl::Status {
        if (&norm == &layers_.front().attention_norm) {
          PHX_RETURN_IF_ERROR(embedding_.Forward(batch, work.residual()));
        }
        PHX_RETURN_IF_ERROR(norm.Forward(work, nullptr, work.normed(), reader));
        if (!in_pieces) PHX_RETURN_IF_ERROR(work.PlaceSums(products));
        return block();
      }));
      return work.Reduce(products);
    };
    for (const Layer& layer : layers_) {
      PHX_RETURN_IF_ERROR(run_block(layer.attention_norm, layer.attention, [&] {
        return std::visit([&](const auto& block) { return block.Forward(rope_table_views_, cache, &work); },
                          layer.attention);
      }));
      PHX_RETURN_IF_ERROR(run_block(layer.mlp_norm, layer.mlp, [&] {
        return std::visit([&](const auto& block) { return block.Forward(&work); }, layer.mlp);
      }));
    }
    return run([&] { return head_.Forward(batch, &work, logits); });
  }

  static int64_t NextNumber() {
    static std::atomic<int64_t> last{0};
    return ++last;
  }

  const int64_t number_ = NextNumber();
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

void FindSeparateMatrices(const ModelConfig& config, TensorFinder& finder, const std::string& prefix,
                          LayerTensors* layer) {
  const int64_t hidden = config.hidden_size;
  const int64_t q_rows = int64_t{config.num_heads} * config.key_dim;
  const int64_t k_rows = int64_t{config.num_kv_heads} * config.key_dim;
  const int64_t v_rows = int64_t{config.num_kv_heads} * config.value_dim;
  TpAttention::Tensors attention;
  attention.q = finder.Matrix(prefix + "self_attn.q_proj", q_rows, hidden);
  attention.k = finder.Matrix(prefix + "self_attn.k_proj", k_rows, hidden);
  attention.v = finder.Matrix(prefix + "self_attn.v_proj", v_rows, hidden);
  const auto bias = [&](const char* name, int64_t rows) {
    const std::string bias_name = prefix + name;
    return config.qkv_bias ? finder.Vector(bias_name, rows) : finder.OptionalVector(bias_name, rows);
  };
  attention.q_bias = bias("self_attn.q_proj.bias", q_rows);
  attention.k_bias = bias("self_attn.k_proj.bias", k_rows);
  attention.v_bias = bias("self_attn.v_proj.bias", v_rows);
  attention.output =
      finder.Matrix(prefix + "self_attn.o_proj", hidden, int64_t{config.num_heads} * config.value_dim);
  layer->attention = std::move(attention);
  layer->mlp = FindMlp(config, finder, prefix + "mlp.", config.ffn_size);
}

TpMlp::Tensors FindMlp(const ModelConfig& config, TensorFinder& finder, const std::string& prefix,
                       int64_t columns) {
  return {.gate = finder.Matrix(prefix + "gate_proj", columns, config.hidden_size),
          .up = finder.Matrix(prefix + "up_proj", columns, config.hidden_size),
          .down = finder.Matrix(prefix + "down_proj", config.hidden_size, columns)};
}

absl::StatusOr<std::unique_ptr<Model>> CreateDecoder(const ModelContext& context,
                                                     const FindLayer& find_layer) {
  PHX_ASSIGN_OR_RETURN(const Tensors tensors, FindTensors(context, find_layer));
  auto model = std::make_unique<Decoder>(context, tensors.embedding);
  PHX_RETURN_IF_ERROR(model->Init(tensors));
  return model;
}

}  // namespace phalanx
