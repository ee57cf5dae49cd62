#include "kernels/reference/reference_ops.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>
#include <limits>
#include <numeric>
#include <string>
#include <utility>

#include "absl/strings/str_cat.h"
#include "base/status_macros.h"
#include "kernels/dequantize.h"
#include "kernels/numeric.h"
#include "kernels/quantised_kv.h"
#include "kernels/validate.h"

namespace phalanx {
namespace {

constexpr int kKernelVersion = 2;

float* RowOf(const Matrix& m, int64_t row) { return static_cast<float*>(m.data) + row * m.stride; }

class ReferenceWeight : public PackedWeight {
 public:
  int64_t n() const override { return n_; }
  int64_t k() const override { return k_; }
  int64_t bytes() const override { return static_cast<int64_t>(values.size() * sizeof(float)); }
  const std::vector<Subtree>& subtrees() const override { return subtrees_; }

  int64_t n_ = 0;
  int64_t k_ = 0;
  std::vector<Subtree> subtrees_;
  std::vector<float> values;  // [n, k]
  std::vector<int64_t> cuts;  // of shards first_shard, ..., relative to the first column
  int first_shard = 0;
  std::vector<std::vector<MergeStep>> merges;  // of each subtree over its shards
};

// [block][layer][kv head]: keys [block_size, key_dim], then values [block_size, value_dim]. Floats that were
// rounded to the cache's type.
class ReferenceKvCache : public KvCache {
 public:
  ReferenceKvCache(const KvCacheShape& shape, int64_t num_blocks, std::unique_ptr<HostBuffer> memory)
      : shape_(shape), num_blocks_(num_blocks), memory_(std::move(memory)) {}
  const KvCacheShape& shape() const override { return shape_; }
  int64_t num_blocks() const override { return num_blocks_; }

  float* Key(int64_t slot, int layer, int head) const {
    return Head(slot / shape_.block_size, layer, head) + slot % shape_.block_size * shape_.key_dim;
  }
  float* Value(int64_t slot, int layer, int head) const {
    return Head(slot / shape_.block_size, layer, head) + int64_t{shape_.block_size} * shape_.key_dim +
           slot % shape_.block_size * shape_.value_dim;
  }

 private:
  float* Head(int64_t block, int layer, int head) const {
    const int64_t head_size = int64_t{shape_.block_size} * (shape_.key_dim + shape_.value_dim);
    return static_cast<float*>(memory_->data()) +
           ((block * shape_.num_layers + layer) * shape_.num_kv_heads + head) * head_size;
  }

  KvCacheShape shape_;
  int64_t num_blocks_;
  std::unique_ptr<HostBuffer> memory_;
};

template <KvCodec kCodec>
void ThroughCodes(const float* x, int64_t n, float* to) {
  for (int64_t begin = 0; begin < n; begin += kKvGroup) {
    const int64_t end = std::min<int64_t>(n, begin + kKvGroup);
    std::array<uint8_t, kKvGroup> codes;
    const float scale = FloatFromBf16(QuantiseKv<kCodec>(x + begin, end - begin, codes.data()));
    for (int64_t i = begin; i < end; ++i) {
      to[i] = KvNumber<kCodec>(codes[static_cast<size_t>(i - begin)]) * scale;
    }
  }
}

// What is read back of `n` channels of a head, as floats.
void RoundToCache(KvType type, const float* x, int64_t n, float* to) {
  switch (type) {
    case KvType::kAuto:
    case KvType::kF32:
      std::copy_n(x, n, to);
      return;
    case KvType::kBf16:
      for (int64_t i = 0; i < n; ++i) to[i] = RoundToBf16(x[i]);
      return;
    case KvType::kInt8:
      return ThroughCodes<KvCodec::kInt8>(x, n, to);
    case KvType::kFp8:
      return ThroughCodes<KvCodec::kE4m3>(x, n, to);
  }
}

float DotFrom(float sum, const float* a, const float* b, int64_t n) {
  for (int64_t i = 0; i < n; ++i) sum += a[i] * b[i];
  return sum;
}

absl::StatusOr<const ReferenceWeight*> Own(const PackedWeight* weight) {
  if (const auto* own = dynamic_cast<const ReferenceWeight*>(weight); own != nullptr) return own;
  return absl::InvalidArgumentError("weight was packed by another backend, must be of the reference backend");
}

}  // namespace

ReferenceOps::ReferenceOps(const OpsOptions& options) : ReferenceOps(options, PortableSamplingLoops()) {}

ReferenceOps::ReferenceOps(const OpsOptions& options, const SamplingLoops& loops) : sampler_(loops) {
  info_.backend = "reference";
  info_.instruction_set = "scalar";
  info_.device = HostCpuName();
  info_.weight_dtype = options.compute == Compute::kFast ? DType::kBF16 : DType::kF32;
  info_.kv_type = options.kv_type != KvType::kAuto    ? options.kv_type
                  : options.compute == Compute::kFast ? KvType::kBf16
                                                      : KvType::kF32;
  info_.kernel_version = kKernelVersion;
}

absl::StatusOr<std::unique_ptr<Buffer>> ReferenceOps::Allocate(int64_t bytes) {
  return HostBuffer::Create(bytes);
}

absl::StatusOr<std::unique_ptr<PackedWeight>> ReferenceOps::PackWeight(const PackWeightParams& p) {
  PHX_RETURN_IF_ERROR(Validate(p));
  auto weight = std::make_unique<ReferenceWeight>();
  weight->k_ = p.cols.size();
  for (const WeightPiece& piece : p.pieces) weight->n_ += piece.rows.size();
  weight->values.resize(static_cast<size_t>(weight->n_ * weight->k_));
  float* out = weight->values.data();
  for (const WeightPiece& piece : p.pieces) {
    DequantizeTile(piece.source, piece.rows, p.cols, out, weight->k_);
    out += piece.rows.size() * weight->k_;
  }
  if (info_.weight_dtype == DType::kBF16) {
    for (float& v : weight->values) v = RoundToBf16(v);
  }
  if (!p.shard_cuts.empty()) {
    weight->first_shard = p.first_shard;
    for (const int64_t cut : p.shard_cuts) weight->cuts.push_back(cut - p.cols.begin);
    weight->subtrees_ = SubtreesOf(p.first_shard, p.first_shard + static_cast<int>(p.shard_cuts.size()) - 1);
    for (const Subtree& subtree : weight->subtrees_) {
      std::vector<Subtree> leaves;
      for (int i = 0; i < subtree.count; ++i) leaves.push_back({subtree.first + i, 1});
      weight->merges.push_back(MergeOrder(leaves));
    }
  }
  return weight;
}

absl::StatusOr<std::unique_ptr<RopeTable>> ReferenceOps::MakeRopeTable(const RopeConfig& config,
                                                                       int64_t num_positions) {
  PHX_RETURN_IF_ERROR(Validate(config, num_positions));
  return std::make_unique<HostRopeTable>(config, num_positions);
}

int64_t ReferenceOps::KvBlockBytes(const KvCacheShape& s) const {
  return int64_t{s.num_layers} * s.num_kv_heads * s.block_size * (s.key_dim + s.value_dim) *
         static_cast<int64_t>(sizeof(float));
}

absl::StatusOr<std::unique_ptr<KvCache>> ReferenceOps::CreateKvCache(const KvCacheShape& shape,
                                                                     int64_t num_blocks) {
  PHX_RETURN_IF_ERROR(Validate(shape, num_blocks, info_.kv_type));
  PHX_ASSIGN_OR_RETURN(auto memory, HostBuffer::Create(KvBlockBytes(shape) * num_blocks));
  return std::make_unique<ReferenceKvCache>(shape, num_blocks, std::move(memory));
}

absl::Status ReferenceOps::Copy(void* to, const void* from, int64_t bytes, CopyKind) {
  if (bytes < 0)
    return absl::InvalidArgumentError(absl::StrCat("Copy: bytes is ", bytes, ", must be at least 0"));
  if (bytes == 0) return absl::OkStatus();
  if (to == nullptr || from == nullptr) {
    return absl::InvalidArgumentError(
        absl::StrCat("Copy: ", to == nullptr ? "to" : "from", " is null, must hold ", bytes, " bytes"));
  }
  std::memmove(to, from, static_cast<size_t>(bytes));
  return absl::OkStatus();
}

absl::Status ReferenceOps::Synchronize(int64_t) { return absl::OkStatus(); }

absl::Status ReferenceOps::Embed(const EmbedParams& p) {
  PHX_RETURN_IF_ERROR(Validate(p));
  PHX_RETURN_IF_ERROR(CheckHostContents(p));
  for (int64_t t = 0; t < p.x.rows; ++t) {
    const bool literal = p.from_sampled == nullptr || p.from_sampled[t] == -1;
    const int64_t id = literal ? p.token_ids[t] : p.sampled[p.from_sampled[t]];
    if (id < 0) {
      std::fill_n(RowOf(p.x, t), p.x.cols, 0.0f);
      continue;
    }
    DequantizeRow(p.table, id, 0, p.table.cols, RowOf(p.x, t));
  }
  return absl::OkStatus();
}

absl::Status ReferenceOps::RmsNorm(const RmsNormParams& p) {
  PHX_RETURN_IF_ERROR(Validate(p));
  PHX_RETURN_IF_ERROR(CheckHostContents(p));
  const int64_t hidden = p.residual.cols;
  if (p.add != nullptr) {
    for (int64_t t = 0; t < p.residual.rows; ++t) {
      float* row = RowOf(p.residual, t);
      for (int64_t i = t * hidden; i < (t + 1) * hidden; ++i) {
        row[i - t * hidden] += p.add2 == nullptr ? p.add[i] : p.add[i] + p.add2[i];
      }
    }
  }
  for (int64_t t = 0; t < p.y.rows; ++t) {
    const float* row = RowOf(p.residual, p.rows == nullptr ? t : p.rows[t]);
    const float mean = DotFrom(0, row, row, hidden) / static_cast<float>(hidden);
    const float factor = 1.0f / std::sqrt(mean + p.eps);
    float* y = RowOf(p.y, t);
    for (int64_t i = 0; i < hidden; ++i) y[i] = row[i] * factor * p.weight[i];
  }
  return absl::OkStatus();
}

absl::Status ReferenceOps::Matmul(const MatmulParams& p) {
  PHX_RETURN_IF_ERROR(Validate(p));
  PHX_ASSIGN_OR_RETURN(const ReferenceWeight* w, Own(p.weight));
  for (int64_t t = 0; t < p.x.rows; ++t) {
    for (int64_t n = 0; n < w->n(); ++n) {
      const float sum = DotFrom(0, RowOf(p.x, t), w->values.data() + n * w->k(), w->k());
      RowOf(p.y, t)[n] = p.bias == nullptr ? sum : sum + p.bias[n];
    }
  }
  return absl::OkStatus();
}

absl::Status ReferenceOps::ShardedMatmul(const ShardedMatmulParams& p) {
  PHX_RETURN_IF_ERROR(Validate(p));
  PHX_ASSIGN_OR_RETURN(const ReferenceWeight* w, Own(p.weight));
  const int64_t tree_stride = p.tree_stride == 0 ? p.x.rows * w->n() : p.tree_stride;
  std::array<float, kMaxShards> sums;
  for (size_t i = 0; i < w->subtrees().size(); ++i) {
    const Subtree& subtree = w->subtrees()[i];
    for (int64_t t = 0; t < p.x.rows; ++t) {
      for (int64_t n = 0; n < w->n(); ++n) {
        for (int s = 0; s < subtree.count; ++s) {
          const int64_t begin = w->cuts[subtree.first - w->first_shard + s];
          const int64_t end = w->cuts[subtree.first - w->first_shard + s + 1];
          sums[s] = DotFrom(0, RowOf(p.x, t) + begin, w->values.data() + n * w->k() + begin, end - begin);
        }
        for (const MergeStep& step : w->merges[i]) sums[step.left] += sums[step.right];
        p.sums[static_cast<int64_t>(i) * tree_stride + t * w->n() + n] = sums[0];
      }
    }
  }
  return absl::OkStatus();
}

absl::Status ReferenceOps::HeadMatmul(const HeadMatmulParams& p) {
  PHX_RETURN_IF_ERROR(Validate(p));
  if (p.weights.empty()) return absl::OkStatus();
  const auto heads = static_cast<int64_t>(p.weights.size());
  const int64_t k = p.weights[0]->k(), n = p.weights[0]->n(), rest = p.x.cols / heads - k;
  for (int64_t h = 0; h < heads; ++h) {
    const Matrix x = {static_cast<float*>(p.x.data) + h * (k + rest), p.x.rows, k, p.x.stride};
    const Matrix y = {static_cast<float*>(p.y.data) + h * (n + rest), p.y.rows, n, p.y.stride};
    PHX_RETURN_IF_ERROR(Matmul({.x = x, .weight = p.weights[h], .bias = nullptr, .y = y, .y_fp32 = false}));
    for (int64_t t = 0; t < x.rows; ++t) std::copy_n(RowOf(x, t) + k, rest, RowOf(y, t) + n);
  }
  return absl::OkStatus();
}

absl::Status ReferenceOps::SwiGlu(const SwiGluParams& p) {
  PHX_RETURN_IF_ERROR(Validate(p));
  for (int64_t t = 0; t < p.y.rows; ++t) {
    const float* gate = RowOf(p.gate_up, t);
    const float* up = gate + p.y.cols;
    for (int64_t i = 0; i < p.y.cols; ++i) RowOf(p.y, t)[i] = gate[i] / (1.0f + Exp(-gate[i])) * up[i];
  }
  return absl::OkStatus();
}

absl::Status ReferenceOps::RopeStoreKv(const RopeStoreKvParams& p) {
  PHX_RETURN_IF_ERROR(Validate(p));
  PHX_RETURN_IF_ERROR(CheckHostContents(p));
  auto* cache = dynamic_cast<ReferenceKvCache*>(p.cache);
  if (cache == nullptr) return absl::InvalidArgumentError("RopeStoreKv: cache is of another backend");
  const KvCacheShape& shape = cache->shape();
  std::vector<float> key(static_cast<size_t>(shape.key_dim));
  for (int64_t t = 0; t < p.q.rows; ++t) {
    const auto* table = dynamic_cast<const HostRopeTable*>(p.tables[static_cast<size_t>(p.rope_mode[t])]);
    if (table == nullptr) return absl::InvalidArgumentError("RopeStoreKv: a table is of another backend");
    for (int h = 0; h < p.num_heads; ++h) {
      RotateHead(*table, p.positions[t], RowOf(p.q, t) + int64_t{h} * shape.key_dim + p.rope_offset);
    }
    if (p.slots[t] < 0) continue;
    for (int g = 0; g < shape.num_kv_heads; ++g) {
      std::copy_n(RowOf(p.k, t) + int64_t{g} * shape.key_dim, shape.key_dim, key.begin());
      RotateHead(*table, p.positions[t], key.data() + p.rope_offset);
      RoundToCache(info_.kv_type, key.data(), shape.key_dim, cache->Key(p.slots[t], p.layer, g));
      if (shape.value_dim == 0) continue;
      RoundToCache(info_.kv_type, RowOf(p.v, t) + int64_t{g} * shape.value_dim, shape.value_dim,
                   cache->Value(p.slots[t], p.layer, g));
    }
  }
  return absl::OkStatus();
}

absl::Status ReferenceOps::Attention(const AttentionParams& p) {
  PHX_RETURN_IF_ERROR(Validate(p));
  PHX_RETURN_IF_ERROR(CheckHostContents(p));
  const auto* cache = dynamic_cast<const ReferenceKvCache*>(p.cache);
  if (cache == nullptr) return absl::InvalidArgumentError("Attention: cache is of another backend");
  const KvCacheShape& shape = cache->shape();
  const int value_dim = p.latent_value_dim > 0 ? p.latent_value_dim : shape.value_dim;
  scores_.resize(kAttentionChunk);
  partial_.resize(static_cast<size_t>(value_dim));
  for (const AttentionSequence& sequence : p.sequences) {
    const auto slot_of = [&](int64_t position) {
      return int64_t{sequence.block_table[position / shape.block_size]} * shape.block_size +
             position % shape.block_size;
    };
    for (int64_t i = 0; i < sequence.num_rows; ++i) {
      const int64_t num_keys = sequence.first_position + i + 1;
      for (int h = 0; h < p.num_heads; ++h) {
        const float* q = RowOf(p.q, sequence.first_row + i) + int64_t{h} * shape.key_dim;
        float* out = RowOf(p.out, sequence.first_row + i) + int64_t{h} * value_dim;
        const int g = p.kv_head_of[h];
        float max = 0, sum = 0;
        for (int64_t begin = 0; begin < num_keys; begin += kAttentionChunk) {
          const auto n = static_cast<int>(std::min<int64_t>(kAttentionChunk, num_keys - begin));
          float chunk_max = -std::numeric_limits<float>::infinity();
          for (int j = 0; j < n; ++j) {
            scores_[j] = DotFrom(0, q, cache->Key(slot_of(begin + j), p.layer, g), shape.key_dim) * p.scale;
            chunk_max = std::max(chunk_max, scores_[j]);
          }
          float chunk_sum = 0;
          std::fill(partial_.begin(), partial_.end(), 0.0f);
          for (int j = 0; j < n; ++j) {
            const int64_t slot = slot_of(begin + j);
            const float weight = Exp(scores_[j] - chunk_max);
            chunk_sum += weight;
            const float* v =
                p.latent_value_dim > 0 ? cache->Key(slot, p.layer, g) : cache->Value(slot, p.layer, g);
            for (int d = 0; d < value_dim; ++d) partial_[d] += weight * v[d];
          }
          if (begin == 0) {
            max = chunk_max;
            sum = chunk_sum;
            std::copy(partial_.begin(), partial_.end(), out);
            continue;
          }
          const float new_max = std::max(max, chunk_max);
          const float old_factor = Exp(max - new_max);
          const float chunk_factor = Exp(chunk_max - new_max);
          max = new_max;
          sum = sum * old_factor + chunk_sum * chunk_factor;
          for (int d = 0; d < value_dim; ++d) out[d] = out[d] * old_factor + partial_[d] * chunk_factor;
        }
        for (int d = 0; d < value_dim; ++d) out[d] /= sum;
      }
    }
  }
  return absl::OkStatus();
}

// source: https://arxiv.org/abs/2412.19437 (section 2.1.2)
void ReferenceOps::RouteRow(const RouteParams& p, int64_t t, RouteScratch& scratch) {
  const int num_experts = p.num_experts;
  const int group_size = num_experts / p.num_groups;
  constexpr float kMasked = -std::numeric_limits<float>::infinity();
  std::vector<float>& score = scratch.score;
  std::vector<float>& choice = scratch.choice;
  std::vector<float>& group_score = scratch.group_score;
  std::vector<int>& order = scratch.order;
  score.resize(num_experts);
  choice.resize(num_experts);
  group_score.resize(p.num_groups);
  // The first `count` of [0, n) by falling value, ties by lower index.
  const auto best = [&order](const std::vector<float>& value, int count) {
    order.resize(value.size());
    std::iota(order.begin(), order.end(), 0);
    std::partial_sort(order.begin(), order.begin() + count, order.end(),
                      [&](int a, int b) { return value[a] > value[b] || (value[a] == value[b] && a < b); });
    order.resize(count);
  };
  const float* logits = p.scores + t * num_experts;
  if (p.sigmoid) {
    for (int e = 0; e < num_experts; ++e) score[e] = 1.0f / (1.0f + Exp(-logits[e]));
  } else {
    const float max = *std::max_element(logits, logits + num_experts);
    float sum = 0;
    for (int e = 0; e < num_experts; ++e) sum += score[e] = Exp(logits[e] - max);
    for (int e = 0; e < num_experts; ++e) score[e] /= sum;
  }
  for (int e = 0; e < num_experts; ++e) {
    choice[e] = score[e] + (p.bias == nullptr ? 0.0f : p.bias[e]);
    // Better than what is masked, so that the row's own weights tell of it.
    if (!(choice[e] >= std::numeric_limits<float>::lowest())) {
      choice[e] = std::numeric_limits<float>::lowest();
    }
  }
  for (int g = 0; g < p.num_groups; ++g) {
    float first = kMasked, second = kMasked;
    for (int e = g * group_size; e < (g + 1) * group_size; ++e) {
      second = std::max(second, std::min(first, choice[e]));
      first = std::max(first, choice[e]);
    }
    group_score[g] = group_size == 1 ? first : first + second;
  }
  best(group_score, p.top_groups);
  scratch.kept.assign(p.num_groups, false);
  for (const int g : order) scratch.kept[g] = true;
  for (int e = 0; e < num_experts; ++e) {
    if (!scratch.kept[e / group_size]) choice[e] = kMasked;
  }
  best(choice, p.top_k);
  std::sort(order.begin(), order.end());
  float sum = 1e-20f;  // where all scores are zero, so are the weights
  for (const int e : order) sum += score[e];
  for (int j = 0; j < p.top_k; ++j) {
    p.ids[t * p.top_k + j] = order[j];
    p.weights[t * p.top_k + j] = (p.normalize ? score[order[j]] / sum : score[order[j]]) * p.scale;
  }
}

absl::Status ReferenceOps::Route(const RouteParams& p) {
  PHX_RETURN_IF_ERROR(Validate(p));
  for (int64_t t = 0; t < p.num_tokens; ++t) RouteRow(p, t, route_);
  return absl::OkStatus();
}

absl::Status ReferenceOps::GroupedMatmul(const GroupedMatmulParams& p) {
  PHX_RETURN_IF_ERROR(Validate(p));
  PHX_RETURN_IF_ERROR(CheckHostContents(p));
  const int64_t n = p.y.cols;
  // Output c of choice j of token t; 0 where another rank holds its expert.
  const auto product = [&](int64_t t, int64_t j, int64_t c) {
    const auto* w = static_cast<const ReferenceWeight*>(p.experts[p.ids[t * p.top_k + j]]);
    if (w == nullptr) return 0.0f;
    const float* x = RowOf(p.x, p.x_per_choice ? t * p.top_k + j : t);
    return DotFrom(0, x, w->values.data() + c * w->k(), w->k());
  };
  for (const PackedWeight* expert : p.experts) {
    if (expert != nullptr) PHX_RETURN_IF_ERROR(Own(expert).status());
  }
  if (p.weights == nullptr) {
    for (int64_t i = 0; i < p.num_tokens * p.top_k; ++i) {
      for (int64_t c = 0; c < n; ++c) RowOf(p.y, i)[c] = product(i / p.top_k, i % p.top_k, c);
    }
    return absl::OkStatus();
  }
  const int first_shard = p.first_shard;
  const int end_shard = first_shard + static_cast<int>(p.expert_cuts.size()) - 1;
  const int64_t tree_stride = p.tree_stride == 0 ? p.y.rows * p.y.stride : p.tree_stride;
  const std::vector<Subtree> subtrees = SubtreesOf(first_shard, end_shard);
  for (size_t i = 0; i < subtrees.size(); ++i) {
    std::vector<Subtree> leaves;
    for (int s = 0; s < subtrees[i].count; ++s) leaves.push_back({subtrees[i].first + s, 1});
    const std::vector<MergeStep> merges = MergeOrder(leaves);
    for (int64_t t = 0; t < p.num_tokens; ++t) {
      for (int64_t c = 0; c < n; ++c) {
        std::array<float, kMaxShards> sums = {};
        for (int s = 0; s < subtrees[i].count; ++s) {
          const int64_t begin = p.expert_cuts[subtrees[i].first - first_shard + s];
          const int64_t end = p.expert_cuts[subtrees[i].first - first_shard + s + 1];
          for (int64_t j = 0; j < p.top_k; ++j) {
            const int32_t e = p.ids[t * p.top_k + j];
            if (e < begin || e >= end || p.experts[e] == nullptr) continue;
            sums[s] += p.weights[t * p.top_k + j] * product(t, j, c);
          }
        }
        for (const MergeStep& step : merges) sums[step.left] += sums[step.right];
        (RowOf(p.y, t) + static_cast<int64_t>(i) * tree_stride)[c] = sums[0];
      }
    }
  }
  return absl::OkStatus();
}

void ReferenceOps::SampleRowInto(const SampleParams& p, int64_t r, Sampler& sampler,
                                 std::vector<float>& gathered) {
  const float* logits = p.logits + r * p.share_cols;
  if (p.num_shares > 1) {
    gathered.resize(static_cast<size_t>(p.vocab_size));
    for (int s = 0; s < p.num_shares; ++s) {
      std::copy_n(p.logits + (s * p.num_rows + r) * p.share_cols, p.share_begin[s + 1] - p.share_begin[s],
                  gathered.data() + p.share_begin[s]);
    }
    logits = gathered.data();
  }
  const SampleRow& row = p.rows[static_cast<size_t>(r)];
  const SampledToken token = sampler.Sample(logits, p.vocab_size, row);
  p.ids[r] = token.id;
  if (row.num_top < 0) return;
  if (p.logprobs != nullptr) p.logprobs[r] = token.logprob;
  if (p.top_ids != nullptr) std::copy_n(token.top_ids.begin(), row.num_top, p.top_ids + r * kMaxTopLogprobs);
  if (p.top_logprobs != nullptr) {
    std::copy_n(token.top_logprobs.begin(), row.num_top, p.top_logprobs + r * kMaxTopLogprobs);
  }
}

absl::Status ReferenceOps::Sample(const SampleParams& p) {
  PHX_RETURN_IF_ERROR(Validate(p));
  for (int64_t r = 0; r < p.num_rows; ++r) SampleRowInto(p, r, sampler_, logits_);
  return absl::OkStatus();
}

}  // namespace phalanx
