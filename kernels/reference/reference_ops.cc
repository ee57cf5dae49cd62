#include "kernels/reference/reference_ops.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <string>
#include <utility>

#include "absl/strings/str_cat.h"
#include "base/status_macros.h"
#include "kernels/dequantize.h"
#include "kernels/numeric.h"
#include "kernels/validate.h"

namespace phalanx {
namespace {

constexpr int kKernelVersion = 1;

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
  info_.kv_dtype = info_.weight_dtype;
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
    for (int64_t r = piece.rows.begin; r < piece.rows.end; ++r, out += weight->k_) {
      DequantizeRow(piece.source, r, p.cols.begin, p.cols.end, out);
    }
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
  PHX_RETURN_IF_ERROR(Validate(shape, num_blocks));
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
      for (int64_t i = 0; i < hidden; ++i) row[i] += p.add[t * hidden + i];
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
        p.sums[(static_cast<int64_t>(i) * p.x.rows + t) * w->n() + n] = sums[0];
      }
    }
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
  const bool round = info_.kv_dtype == DType::kBF16;
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
      float* to = cache->Key(p.slots[t], p.layer, g);
      for (int i = 0; i < shape.key_dim; ++i) to[i] = round ? RoundToBf16(key[i]) : key[i];
      to = cache->Value(p.slots[t], p.layer, g);
      for (int i = 0; i < shape.value_dim; ++i) {
        const float v = RowOf(p.v, t)[int64_t{g} * shape.value_dim + i];
        to[i] = round ? RoundToBf16(v) : v;
      }
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
absl::Status ReferenceOps::Route(const RouteParams& p) {
  PHX_RETURN_IF_ERROR(Validate(p));
  const int num_experts = p.num_experts;
  const int group_size = num_experts / p.num_groups;
  constexpr float kLowest = -std::numeric_limits<float>::infinity();
  std::vector<float> score(num_experts), choice(num_experts), group_score(p.num_groups);
  std::vector<int> order;
  // The first `count` of [0, n) by falling value, ties by lower index.
  const auto best = [&order](const std::vector<float>& value, int count) {
    order.resize(value.size());
    for (size_t i = 0; i < order.size(); ++i) order[i] = static_cast<int>(i);
    std::stable_sort(order.begin(), order.end(), [&](int a, int b) { return value[a] > value[b]; });
    order.resize(count);
  };
  for (int64_t t = 0; t < p.num_tokens; ++t) {
    const float* logits = p.scores + t * num_experts;
    if (p.sigmoid) {
      for (int e = 0; e < num_experts; ++e) score[e] = 1.0f / (1.0f + Exp(-logits[e]));
    } else {
      const float max = *std::max_element(logits, logits + num_experts);
      float sum = 0;
      for (int e = 0; e < num_experts; ++e) sum += score[e] = Exp(logits[e] - max);
      for (int e = 0; e < num_experts; ++e) score[e] /= sum;
    }
    for (int e = 0; e < num_experts; ++e) choice[e] = score[e] + (p.bias == nullptr ? 0.0f : p.bias[e]);
    for (int g = 0; g < p.num_groups; ++g) {
      float first = kLowest, second = kLowest;
      for (int e = g * group_size; e < (g + 1) * group_size; ++e) {
        second = std::max(second, std::min(first, choice[e]));
        first = std::max(first, choice[e]);
      }
      group_score[g] = group_size == 1 ? first : first + second;
    }
    best(group_score, p.top_groups);
    std::vector<bool> kept(p.num_groups);
    for (const int g : order) kept[g] = true;
    for (int e = 0; e < num_experts; ++e) {
      if (!kept[e / group_size]) choice[e] = kLowest;
    }
    best(choice, p.top_k);
    std::sort(order.begin(), order.end());
    float sum = 0;
    for (const int e : order) sum += score[e];
    for (int j = 0; j < p.top_k; ++j) {
      p.ids[t * p.top_k + j] = order[j];
      p.weights[t * p.top_k + j] = (p.normalize ? score[order[j]] / sum : score[order[j]]) * p.scale;
    }
  }
  return absl::OkStatus();
}

// By Matmul, expert by expert in rising order: so that a row's bits do not depend on its neighbours' routes.
absl::Status ReferenceOps::GroupedMatmul(const GroupedMatmulParams& p) {
  PHX_RETURN_IF_ERROR(Validate(p));
  PHX_RETURN_IF_ERROR(CheckHostContents(p));
  const int64_t k = p.x.cols, n = p.y.cols;
  for (int64_t t = 0; t < p.y.rows; ++t) std::fill_n(RowOf(p.y, t), n, 0.0f);
  for (size_t e = 0; e < p.experts.size(); ++e) {
    if (p.experts[e] == nullptr) continue;
    choices_.clear();
    for (int64_t i = 0; i < p.num_tokens * p.top_k; ++i) {
      if (p.ids[i] == static_cast<int32_t>(e)) choices_.push_back(i);
    }
    if (choices_.empty()) continue;
    const auto num = static_cast<int64_t>(choices_.size());
    rows_x_.resize(static_cast<size_t>(num * k));
    rows_y_.resize(static_cast<size_t>(num * n));
    for (int64_t i = 0; i < num; ++i) {
      std::copy_n(RowOf(p.x, p.x_per_choice ? choices_[i] : choices_[i] / p.top_k), k,
                  rows_x_.data() + i * k);
    }
    MatmulParams matmul;
    matmul.x = {rows_x_.data(), num, k, k};
    matmul.weight = p.experts[e];
    matmul.y = {rows_y_.data(), num, n, n};
    matmul.y_fp32 = true;
    PHX_RETURN_IF_ERROR(Matmul(matmul));
    for (int64_t i = 0; i < num; ++i) {
      const float* from = rows_y_.data() + i * n;
      if (p.weights == nullptr) {
        std::copy_n(from, n, RowOf(p.y, choices_[i]));
        continue;
      }
      float* y = RowOf(p.y, choices_[i] / p.top_k);
      for (int64_t c = 0; c < n; ++c) y[c] += p.weights[choices_[i]] * from[c];
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
