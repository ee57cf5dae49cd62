#include "kernels/validate.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <string>

#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"
#include "base/status_macros.h"
#include "base/strings.h"

namespace phalanx {
namespace {

template <typename... Args>
absl::Status Invalid(const Args&... args) {
  return absl::InvalidArgumentError(absl::StrCat(args...));
}

absl::Status CheckMatrix(absl::string_view name, const Matrix& m) {
  if (m.rows < 0) return Invalid(name, ".rows is ", m.rows, ", must be at least 0");
  if (m.cols < 0) return Invalid(name, ".cols is ", m.cols, ", must be at least 0");
  if (m.stride < m.cols) return Invalid(name, ".stride is ", m.stride, ", must be at least .cols = ", m.cols);
  if (m.data == nullptr && m.rows > 0 && m.cols > 0) {
    return Invalid(name, ".data is null, must hold ", m.rows, " x ", m.cols, " elements");
  }
  return absl::OkStatus();
}

absl::Status CheckEqual(absl::string_view name, int64_t value, absl::string_view other_name, int64_t other) {
  if (value == other) return absl::OkStatus();
  return Invalid(name, " is ", value, ", must be ", other_name, " = ", other);
}

absl::Status CheckAtLeast(absl::string_view name, int64_t value, int64_t least) {
  if (value >= least) return absl::OkStatus();
  return Invalid(name, " is ", value, ", must be at least ", least);
}

// A pointer that must be set when there is anything to read or write through it.
absl::Status CheckPointer(absl::string_view name, const void* pointer, int64_t elements) {
  if (pointer != nullptr || elements == 0) return absl::OkStatus();
  return Invalid(name, " is null, must hold ", elements, " elements");
}

absl::Status CheckInRange(absl::string_view name, int64_t index, int64_t value, int64_t begin, int64_t end) {
  if (value >= begin && value < end) return absl::OkStatus();
  return Invalid(name, "[", index, "] is ", value, ", must be in [", begin, ", ", end, ")");
}

// Matrices of `elements` of subtrees must not lie in each other; a stride of 0 is `elements`.
absl::Status CheckTreeStride(absl::string_view call, int64_t stride, size_t subtrees, int64_t elements) {
  if (stride == 0 || subtrees < 2 || stride >= elements) return absl::OkStatus();
  return Invalid(call, ": tree_stride is ", stride, ", must be 0 or at least T * N = ", elements);
}

absl::Status CheckScales(absl::string_view name, const WeightSource& source) {
  const WeightScales& s = source.scales;
  if (s.data == nullptr) return absl::OkStatus();
  if (source.dtype != DType::kF8E4M3) {
    return Invalid(name, ".scales are given, must be none for ", ToAbsl(DTypeName(source.dtype)));
  }
  if (s.dtype != DType::kF32 && s.dtype != DType::kF16 && s.dtype != DType::kBF16) {
    return Invalid(name, ".scales.dtype is ", ToAbsl(DTypeName(s.dtype)), ", must be F32, F16 or BF16");
  }
  PHX_RETURN_IF_ERROR(CheckAtLeast(absl::StrCat(name, ".scales.block_rows"), s.block_rows, 1));
  PHX_RETURN_IF_ERROR(CheckAtLeast(absl::StrCat(name, ".scales.block_cols"), s.block_cols, 1));
  const int64_t blocks = source.cols / s.block_cols + (source.cols % s.block_cols != 0);
  return CheckAtLeast(absl::StrCat(name, ".scales.stride"), s.stride, blocks);
}

absl::Status CheckGroups(absl::string_view name, const WeightSource& source) {
  const WeightGroups& g = source.groups;
  if (source.stored_rows % 8 != 0 || source.stored_rows - source.first_row < source.rows) {
    return Invalid(name, ".stored_rows is ", source.stored_rows, ", must be a multiple of 8 and at least ",
                   ".first_row + .rows = ", source.first_row + source.rows);
  }
  if (source.dtype == DType::kGptq && source.cols % 8 != 0) {
    return Invalid(name, ".cols is ", source.cols, ", must be a multiple of the 8 of a word");
  }
  PHX_RETURN_IF_ERROR(CheckPointer(absl::StrCat(name, ".groups.scales"), g.scales, source.rows));
  PHX_RETURN_IF_ERROR(CheckPointer(absl::StrCat(name, ".groups.zeros"), g.zeros, source.rows));
  if (g.scales_dtype != DType::kF32 && g.scales_dtype != DType::kF16 && g.scales_dtype != DType::kBF16) {
    return Invalid(name, ".groups.scales_dtype is ", ToAbsl(DTypeName(g.scales_dtype)),
                   ", must be F32, F16 or BF16");
  }
  if (g.zero_offset < 0 || g.zero_offset > 1) {
    return Invalid(name, ".groups.zero_offset is ", g.zero_offset, ", must be 0 or 1");
  }
  if (g.group_of != nullptr) {
    // Elements may lie at any address.
    const auto* bytes = reinterpret_cast<const char*>(g.group_of);
    for (int64_t c = 0; c < source.cols; ++c) {
      int32_t group = 0;
      std::memcpy(&group, bytes + c * 4, sizeof(group));
      if (group < 0) return Invalid(name, ".groups.group_of[", c, "] is ", group, ", must be at least 0");
    }
    return absl::OkStatus();
  }
  return CheckAtLeast(absl::StrCat(name, ".groups.group_size"), g.group_size, 1);
}

absl::Status CheckSource(absl::string_view name, const WeightSource& source) {
  if (source.rows < 0) return Invalid(name, ".rows is ", source.rows, ", must be at least 0");
  if (source.cols < 0) return Invalid(name, ".cols is ", source.cols, ", must be at least 0");
  if (source.first_row < 0) return Invalid(name, ".first_row is ", source.first_row, ", must be at least 0");
  if (BlockBytes(source.dtype) == 0) {
    return Invalid(name, ".dtype is ", static_cast<int>(source.dtype), ", which is no DType");
  }
  if (source.data == nullptr && source.rows > 0 && source.cols > 0) {
    return Invalid(name, ".data is null, must hold ", source.rows, " x ", source.cols, " elements");
  }
  PHX_RETURN_IF_ERROR(CheckScales(name, source));
  if (source.dtype == DType::kAwq || source.dtype == DType::kGptq) return CheckGroups(name, source);
  if (source.cols % BlockElements(source.dtype) != 0) {
    return Invalid(name, ".cols is ", source.cols, ", must be a multiple of the block of ",
                   ToAbsl(DTypeName(source.dtype)), " = ", BlockElements(source.dtype));
  }
  return absl::OkStatus();
}

}  // namespace

absl::Status Validate(const PackWeightParams& p) {
  if (p.pieces.empty()) return Invalid("PackWeight: pieces is empty, must have at least one");
  if (p.cols.begin < 0 || p.cols.end < p.cols.begin) {
    return Invalid("PackWeight: cols is [", p.cols.begin, ", ", p.cols.end,
                   "), must be a range from 0 or more");
  }
  for (size_t i = 0; i < p.pieces.size(); ++i) {
    const WeightPiece& piece = p.pieces[i];
    const std::string name = absl::StrCat("PackWeight: pieces[", i, "]");
    PHX_RETURN_IF_ERROR(CheckSource(absl::StrCat(name, ".source"), piece.source));
    if (piece.rows.begin < 0 || piece.rows.end < piece.rows.begin || piece.rows.end > piece.source.rows) {
      return Invalid(name, ".rows is [", piece.rows.begin, ", ", piece.rows.end,
                     "), must lie in [0, .source.rows = ", piece.source.rows, ")");
    }
    if (p.cols.end > piece.source.cols) {
      return Invalid("PackWeight: cols.end is ", p.cols.end, ", must be at most pieces[", i,
                     "].source.cols = ", piece.source.cols);
    }
  }
  if (p.shard_cuts.empty()) return absl::OkStatus();
  if (p.shard_cuts.size() < 2) {
    return Invalid("PackWeight: shard_cuts has one entry, must have none or one more than the shards");
  }
  PHX_RETURN_IF_ERROR(
      CheckEqual("PackWeight: shard_cuts.front()", p.shard_cuts.front(), "cols.begin", p.cols.begin));
  PHX_RETURN_IF_ERROR(
      CheckEqual("PackWeight: shard_cuts.back()", p.shard_cuts.back(), "cols.end", p.cols.end));
  for (size_t i = 1; i < p.shard_cuts.size(); ++i) {
    PHX_RETURN_IF_ERROR(
        CheckAtLeast(absl::StrCat("PackWeight: shard_cuts[", i, "]"), p.shard_cuts[i], p.shard_cuts[i - 1]));
  }
  PHX_RETURN_IF_ERROR(CheckAtLeast("PackWeight: first_shard", p.first_shard, 0));
  const int64_t end = p.first_shard + static_cast<int64_t>(p.shard_cuts.size()) - 1;
  if (end > kMaxShards) {
    return Invalid("PackWeight: first_shard + shards is ", end, ", must be at most ", kMaxShards);
  }
  return absl::OkStatus();
}

absl::Status Validate(const RopeConfig& c, int64_t num_positions) {
  PHX_RETURN_IF_ERROR(CheckAtLeast("MakeRopeTable: rotary_dim", c.rotary_dim, 0));
  if (c.rotary_dim % 2 != 0) return Invalid("MakeRopeTable: rotary_dim is ", c.rotary_dim, ", must be even");
  if (!(c.theta > 0) || !std::isfinite(c.theta)) {
    return Invalid("MakeRopeTable: theta is ", c.theta, ", must be positive and finite");
  }
  PHX_RETURN_IF_ERROR(CheckAtLeast("MakeRopeTable: num_positions", num_positions, 0));
  if (c.freq_factors.empty()) return absl::OkStatus();
  PHX_RETURN_IF_ERROR(CheckEqual("MakeRopeTable: freq_factors.size()",
                                 static_cast<int64_t>(c.freq_factors.size()), "rotary_dim / 2",
                                 c.rotary_dim / 2));
  for (size_t i = 0; i < c.freq_factors.size(); ++i) {
    if (!(c.freq_factors[i] > 0)) {
      return Invalid("MakeRopeTable: freq_factors[", i, "] is ", c.freq_factors[i], ", must be positive");
    }
  }
  return absl::OkStatus();
}

absl::Status Validate(const KvCacheShape& s, int64_t num_blocks, KvType type) {
  PHX_RETURN_IF_ERROR(CheckAtLeast("CreateKvCache: num_layers", s.num_layers, 1));
  PHX_RETURN_IF_ERROR(CheckAtLeast("CreateKvCache: num_kv_heads", s.num_kv_heads, 0));
  PHX_RETURN_IF_ERROR(CheckAtLeast("CreateKvCache: key_dim", s.key_dim, 1));
  PHX_RETURN_IF_ERROR(CheckAtLeast("CreateKvCache: value_dim", s.value_dim, 0));
  PHX_RETURN_IF_ERROR(CheckAtLeast("CreateKvCache: num_blocks", num_blocks, 0));
  if (s.block_size < 1 || kAttentionChunk % s.block_size != 0) {
    return Invalid("CreateKvCache: block_size is ", s.block_size, ", must divide ", kAttentionChunk);
  }
  if (IsQuantised(type) && s.value_dim == 0) {
    return Invalid("CreateKvCache: value_dim is 0 (latents, MLA), must be above 0 for a KV cache of ",
                   KvTypeName(type));
  }
  return absl::OkStatus();
}

absl::Status Validate(const EmbedParams& p) {
  PHX_RETURN_IF_ERROR(CheckSource("Embed: table", p.table));
  PHX_RETURN_IF_ERROR(CheckMatrix("Embed: x", p.x));
  PHX_RETURN_IF_ERROR(CheckEqual("Embed: x.cols", p.x.cols, "table.cols", p.table.cols));
  if (p.from_sampled == nullptr) PHX_RETURN_IF_ERROR(CheckPointer("Embed: token_ids", p.token_ids, p.x.rows));
  return absl::OkStatus();
}

absl::Status CheckHostContents(const EmbedParams& p) {
  for (int64_t t = 0; t < p.x.rows; ++t) {
    const int32_t from = p.from_sampled == nullptr ? -1 : p.from_sampled[t];
    if (from < -1) return Invalid("Embed: from_sampled[", t, "] is ", from, ", must be at least -1");
    if (from >= 0) {
      PHX_RETURN_IF_ERROR(CheckPointer("Embed: sampled", p.sampled, from + 1));
      PHX_RETURN_IF_ERROR(CheckInRange("Embed: sampled", from, p.sampled[from], -1, p.table.rows));
    } else {
      PHX_RETURN_IF_ERROR(CheckPointer("Embed: token_ids", p.token_ids, t + 1));
      PHX_RETURN_IF_ERROR(CheckInRange("Embed: token_ids", t, p.token_ids[t], 0, p.table.rows));
    }
  }
  return absl::OkStatus();
}

absl::Status Validate(const RmsNormParams& p) {
  PHX_RETURN_IF_ERROR(CheckMatrix("RmsNorm: residual", p.residual));
  PHX_RETURN_IF_ERROR(CheckMatrix("RmsNorm: y", p.y));
  PHX_RETURN_IF_ERROR(CheckEqual("RmsNorm: y.cols", p.y.cols, "residual.cols", p.residual.cols));
  if (p.rows == nullptr) {
    PHX_RETURN_IF_ERROR(
        CheckEqual("RmsNorm: y.rows (rows is null)", p.y.rows, "residual.rows", p.residual.rows));
  }
  if (!(p.eps >= 0)) return Invalid("RmsNorm: eps is ", p.eps, ", must be at least 0");
  if (p.add2 != nullptr && p.add == nullptr) return Invalid("RmsNorm: add is null, must be set with add2");
  if (p.read_by != nullptr) {
    PHX_RETURN_IF_ERROR(CheckEqual("RmsNorm: read_by's K", p.read_by->k(), "y.cols", p.y.cols));
  }
  return CheckPointer("RmsNorm: weight", p.weight, p.y.rows == 0 ? 0 : p.y.cols);
}

absl::Status CheckHostContents(const RmsNormParams& p) {
  if (p.rows == nullptr) return absl::OkStatus();
  for (int64_t i = 0; i < p.y.rows; ++i) {
    PHX_RETURN_IF_ERROR(CheckInRange("RmsNorm: rows", i, p.rows[i], 0, p.residual.rows));
  }
  return absl::OkStatus();
}

absl::Status Validate(const MatmulParams& p) {
  if (p.weight == nullptr) return Invalid("Matmul: weight is null");
  if (!p.weight->subtrees().empty()) {
    return Invalid("Matmul: weight is K-sharded (", p.weight->subtrees().size(),
                   " subtrees), must be packed without shard_cuts; ShardedMatmul takes it");
  }
  PHX_RETURN_IF_ERROR(CheckMatrix("Matmul: x", p.x));
  PHX_RETURN_IF_ERROR(CheckMatrix("Matmul: y", p.y));
  PHX_RETURN_IF_ERROR(CheckEqual("Matmul: x.cols", p.x.cols, "weight K", p.weight->k()));
  PHX_RETURN_IF_ERROR(CheckEqual("Matmul: y.cols", p.y.cols, "weight N", p.weight->n()));
  return CheckEqual("Matmul: y.rows", p.y.rows, "x.rows", p.x.rows);
}

absl::Status Validate(const ShardedMatmulParams& p) {
  if (p.weight == nullptr) return Invalid("ShardedMatmul: weight is null");
  if (p.weight->subtrees().empty()) {
    return Invalid("ShardedMatmul: weight is not K-sharded, must be packed with shard_cuts; Matmul takes it");
  }
  PHX_RETURN_IF_ERROR(CheckMatrix("ShardedMatmul: x", p.x));
  PHX_RETURN_IF_ERROR(CheckEqual("ShardedMatmul: x.cols", p.x.cols, "weight K", p.weight->k()));
  PHX_RETURN_IF_ERROR(
      CheckTreeStride("ShardedMatmul", p.tree_stride, p.weight->subtrees().size(), p.x.rows * p.weight->n()));
  return CheckPointer("ShardedMatmul: sums", p.sums,
                      static_cast<int64_t>(p.weight->subtrees().size()) * p.x.rows * p.weight->n());
}

absl::Status Validate(const HeadMatmulParams& p) {
  PHX_RETURN_IF_ERROR(CheckMatrix("HeadMatmul: x", p.x));
  PHX_RETURN_IF_ERROR(CheckMatrix("HeadMatmul: y", p.y));
  PHX_RETURN_IF_ERROR(CheckEqual("HeadMatmul: y.rows", p.y.rows, "x.rows", p.x.rows));
  const auto heads = static_cast<int64_t>(p.weights.size());
  if (heads == 0) {
    PHX_RETURN_IF_ERROR(CheckEqual("HeadMatmul: x.cols", p.x.cols, "no heads'", 0));
    return CheckEqual("HeadMatmul: y.cols", p.y.cols, "no heads'", 0);
  }
  for (size_t h = 0; h < p.weights.size(); ++h) {
    const PackedWeight* w = p.weights[h];
    if (w == nullptr) return Invalid("HeadMatmul: weights[", h, "] is null");
    if (!w->subtrees().empty()) {
      return Invalid("HeadMatmul: weights[", h, "] is K-sharded, must be packed without shard_cuts");
    }
    if (w->k() != p.weights[0]->k() || w->n() != p.weights[0]->n()) {
      return Invalid("HeadMatmul: weights[", h, "] has K = ", w->k(), " and N = ", w->n(), ", must have ",
                     p.weights[0]->k(), " and ", p.weights[0]->n(), " as weights[0]");
    }
  }
  const int64_t rest = p.x.cols / heads - p.weights[0]->k();
  if (p.x.cols % heads != 0 || rest < 0) {
    return Invalid("HeadMatmul: x.cols is ", p.x.cols, ", must be a multiple of the ", heads,
                   " heads, at least K = ", p.weights[0]->k(), " for each");
  }
  return CheckEqual("HeadMatmul: y.cols", p.y.cols, "heads * (N + x.cols / heads - K)",
                    heads * (p.weights[0]->n() + rest));
}

absl::Status Validate(const SwiGluParams& p) {
  PHX_RETURN_IF_ERROR(CheckMatrix("SwiGlu: gate_up", p.gate_up));
  PHX_RETURN_IF_ERROR(CheckMatrix("SwiGlu: y", p.y));
  PHX_RETURN_IF_ERROR(CheckEqual("SwiGlu: gate_up.cols", p.gate_up.cols, "2 * y.cols", 2 * p.y.cols));
  return CheckEqual("SwiGlu: y.rows", p.y.rows, "gate_up.rows", p.gate_up.rows);
}

absl::Status Validate(const RopeStoreKvParams& p) {
  if (p.cache == nullptr) return Invalid("RopeStoreKv: cache is null");
  const KvCacheShape& s = p.cache->shape();
  PHX_RETURN_IF_ERROR(CheckMatrix("RopeStoreKv: q", p.q));
  PHX_RETURN_IF_ERROR(CheckMatrix("RopeStoreKv: k", p.k));
  PHX_RETURN_IF_ERROR(CheckMatrix("RopeStoreKv: v", p.v));
  PHX_RETURN_IF_ERROR(CheckAtLeast("RopeStoreKv: num_heads", p.num_heads, 0));
  PHX_RETURN_IF_ERROR(CheckEqual("RopeStoreKv: q.cols", p.q.cols, "num_heads * key_dim",
                                 static_cast<int64_t>(p.num_heads) * s.key_dim));
  PHX_RETURN_IF_ERROR(CheckEqual("RopeStoreKv: k.cols", p.k.cols, "num_kv_heads * key_dim",
                                 static_cast<int64_t>(s.num_kv_heads) * s.key_dim));
  PHX_RETURN_IF_ERROR(CheckEqual("RopeStoreKv: v.cols", p.v.cols, "num_kv_heads * value_dim",
                                 static_cast<int64_t>(s.num_kv_heads) * s.value_dim));
  PHX_RETURN_IF_ERROR(CheckEqual("RopeStoreKv: k.rows", p.k.rows, "q.rows", p.q.rows));
  if (s.value_dim > 0) PHX_RETURN_IF_ERROR(CheckEqual("RopeStoreKv: v.rows", p.v.rows, "q.rows", p.q.rows));
  if (p.layer < 0 || p.layer >= s.num_layers) {
    return Invalid("RopeStoreKv: layer is ", p.layer, ", must be in [0, num_layers = ", s.num_layers, ")");
  }
  PHX_RETURN_IF_ERROR(CheckAtLeast("RopeStoreKv: rope_offset", p.rope_offset, 0));
  if (p.tables.empty()) return Invalid("RopeStoreKv: tables is empty, must have a table per RoPE mode");
  for (size_t i = 0; i < p.tables.size(); ++i) {
    if (p.tables[i] == nullptr) return Invalid("RopeStoreKv: tables[", i, "] is null");
    if (p.rope_offset + p.tables[i]->rotary_dim() > s.key_dim) {
      return Invalid("RopeStoreKv: rope_offset + tables[", i, "].rotary_dim is ",
                     p.rope_offset + p.tables[i]->rotary_dim(), ", must be at most key_dim = ", s.key_dim);
    }
  }
  PHX_RETURN_IF_ERROR(CheckPointer("RopeStoreKv: positions", p.positions, p.q.rows));
  PHX_RETURN_IF_ERROR(CheckPointer("RopeStoreKv: rope_mode", p.rope_mode, p.q.rows));
  return CheckPointer("RopeStoreKv: slots", p.slots, p.q.rows);
}

absl::Status CheckHostContents(const RopeStoreKvParams& p) {
  const int64_t num_slots = p.cache->num_blocks() * p.cache->shape().block_size;
  for (int64_t t = 0; t < p.q.rows; ++t) {
    PHX_RETURN_IF_ERROR(
        CheckInRange("RopeStoreKv: rope_mode", t, p.rope_mode[t], 0, static_cast<int64_t>(p.tables.size())));
    PHX_RETURN_IF_ERROR(CheckInRange("RopeStoreKv: positions", t, p.positions[t], 0,
                                     p.tables[static_cast<size_t>(p.rope_mode[t])]->num_positions()));
    if (p.slots[t] >= num_slots) {
      return Invalid("RopeStoreKv: slots[", t, "] is ", p.slots[t],
                     ", must be below num_blocks * block_size = ", num_slots);
    }
  }
  return absl::OkStatus();
}

absl::Status Validate(const AttentionParams& p) {
  if (p.cache == nullptr) return Invalid("Attention: cache is null");
  const KvCacheShape& s = p.cache->shape();
  PHX_RETURN_IF_ERROR(CheckMatrix("Attention: q", p.q));
  PHX_RETURN_IF_ERROR(CheckMatrix("Attention: out", p.out));
  PHX_RETURN_IF_ERROR(CheckAtLeast("Attention: num_heads", p.num_heads, 0));
  PHX_RETURN_IF_ERROR(CheckEqual("Attention: q.cols", p.q.cols, "num_heads * key_dim",
                                 static_cast<int64_t>(p.num_heads) * s.key_dim));
  PHX_RETURN_IF_ERROR(CheckAtLeast("Attention: latent_value_dim", p.latent_value_dim, 0));
  if (p.latent_value_dim > 0 && s.value_dim > 0) {
    return Invalid("Attention: latent_value_dim is ", p.latent_value_dim,
                   ", must be 0 for a cache with value_dim = ", s.value_dim);
  }
  if (p.latent_value_dim > s.key_dim) {
    return Invalid("Attention: latent_value_dim is ", p.latent_value_dim,
                   ", must be at most key_dim = ", s.key_dim);
  }
  const int64_t value_dim = p.latent_value_dim > 0 ? p.latent_value_dim : s.value_dim;
  PHX_RETURN_IF_ERROR(
      CheckEqual("Attention: out.cols", p.out.cols, "num_heads * value channels", p.num_heads * value_dim));
  PHX_RETURN_IF_ERROR(CheckEqual("Attention: out.rows", p.out.rows, "q.rows", p.q.rows));
  if (p.layer < 0 || p.layer >= s.num_layers) {
    return Invalid("Attention: layer is ", p.layer, ", must be in [0, num_layers = ", s.num_layers, ")");
  }
  PHX_RETURN_IF_ERROR(CheckPointer("Attention: kv_head_of", p.kv_head_of, p.num_heads));
  for (int h = 0; h < p.num_heads; ++h) {
    PHX_RETURN_IF_ERROR(CheckInRange("Attention: kv_head_of", h, p.kv_head_of[h], 0, s.num_kv_heads));
  }
  for (size_t i = 0; i < p.sequences.size(); ++i) {
    const AttentionSequence& q = p.sequences[i];
    if (q.first_row < 0 || q.num_rows < 0 || q.first_row + q.num_rows > p.q.rows) {
      return Invalid("Attention: sequences[", i, "] takes rows [", q.first_row, ", ",
                     q.first_row + q.num_rows, "), must lie in [0, q.rows = ", p.q.rows, ")");
    }
    if (q.first_position < 0) {
      return Invalid("Attention: sequences[", i, "].first_position is ", q.first_position,
                     ", must be at least 0");
    }
    if (q.num_rows > 0 && q.block_table == nullptr) {
      return Invalid("Attention: sequences[", i, "].block_table is null");
    }
  }
  return absl::OkStatus();
}

absl::Status CheckHostContents(const AttentionParams& p) {
  const int64_t block_size = p.cache->shape().block_size;
  for (size_t i = 0; i < p.sequences.size(); ++i) {
    const AttentionSequence& q = p.sequences[i];
    if (q.num_rows == 0) continue;
    const int64_t last_block = (q.first_position + q.num_rows - 1) / block_size;
    for (int64_t b = 0; b <= last_block; ++b) {
      if (q.block_table[b] >= 0 && q.block_table[b] < p.cache->num_blocks()) continue;
      return Invalid("Attention: sequences[", i, "].block_table[", b, "] is ", q.block_table[b],
                     ", must be in [0, num_blocks = ", p.cache->num_blocks(), ")");
    }
  }
  return absl::OkStatus();
}

absl::Status Validate(const RouteParams& p) {
  PHX_RETURN_IF_ERROR(CheckAtLeast("Route: num_tokens", p.num_tokens, 0));
  PHX_RETURN_IF_ERROR(CheckAtLeast("Route: num_experts", p.num_experts, 1));
  PHX_RETURN_IF_ERROR(CheckAtLeast("Route: num_groups", p.num_groups, 1));
  if (p.num_experts % p.num_groups != 0) {
    return Invalid("Route: num_groups is ", p.num_groups, ", must divide num_experts = ", p.num_experts);
  }
  if (p.top_groups < 1 || p.top_groups > p.num_groups) {
    return Invalid("Route: top_groups is ", p.top_groups, ", must be in [1, num_groups = ", p.num_groups,
                   "]");
  }
  const int candidates = p.num_experts / p.num_groups * p.top_groups;
  if (p.top_k < 1 || p.top_k > candidates) {
    return Invalid("Route: top_k is ", p.top_k, ", must be in [1, experts of the kept groups = ", candidates,
                   "]");
  }
  PHX_RETURN_IF_ERROR(CheckPointer("Route: scores", p.scores, p.num_tokens * p.num_experts));
  PHX_RETURN_IF_ERROR(CheckPointer("Route: ids", p.ids, p.num_tokens * p.top_k));
  return CheckPointer("Route: weights", p.weights, p.num_tokens * p.top_k);
}

namespace {

absl::Status CheckExpertCuts(const GroupedMatmulParams& p) {
  const auto num_experts = static_cast<int64_t>(p.experts.size());
  const auto num_shards = static_cast<int64_t>(p.expert_cuts.size()) - 1;
  if (num_shards < 1) {
    return Invalid("GroupedMatmul: expert_cuts has ", p.expert_cuts.size(),
                   " entries, must have one more than the shards with weights");
  }
  PHX_RETURN_IF_ERROR(CheckAtLeast("GroupedMatmul: first_shard", p.first_shard, 0));
  if (p.first_shard + num_shards > kMaxShards) {
    return Invalid("GroupedMatmul: first_shard + shards is ", p.first_shard + num_shards,
                   ", must be at most ", kMaxShards);
  }
  for (size_t i = 0; i < p.expert_cuts.size(); ++i) {
    const int64_t least = i == 0 ? 0 : p.expert_cuts[i - 1];
    PHX_RETURN_IF_ERROR(CheckInRange("GroupedMatmul: expert_cuts", static_cast<int64_t>(i), p.expert_cuts[i],
                                     least, num_experts + 1));
  }
  for (int64_t e = 0; e < num_experts; ++e) {
    if (p.experts[e] == nullptr || (e >= p.expert_cuts.front() && e < p.expert_cuts.back())) continue;
    return Invalid("GroupedMatmul: experts[", e, "] is given, must be null outside expert_cuts' [",
                   p.expert_cuts.front(), ", ", p.expert_cuts.back(), ")");
  }
  return CheckTreeStride("GroupedMatmul", p.tree_stride, static_cast<size_t>(num_shards),
                         p.y.rows * p.y.stride);
}

}  // namespace

absl::Status Validate(const GroupedMatmulParams& p) {
  PHX_RETURN_IF_ERROR(CheckMatrix("GroupedMatmul: x", p.x));
  PHX_RETURN_IF_ERROR(CheckMatrix("GroupedMatmul: y", p.y));
  PHX_RETURN_IF_ERROR(CheckAtLeast("GroupedMatmul: num_tokens", p.num_tokens, 0));
  PHX_RETURN_IF_ERROR(CheckAtLeast("GroupedMatmul: top_k", p.top_k, 1));
  const int64_t choices = p.num_tokens * p.top_k;
  PHX_RETURN_IF_ERROR(CheckEqual("GroupedMatmul: x.rows", p.x.rows,
                                 p.x_per_choice ? "num_tokens * top_k" : "num_tokens",
                                 p.x_per_choice ? choices : p.num_tokens));
  PHX_RETURN_IF_ERROR(CheckEqual("GroupedMatmul: y.rows", p.y.rows,
                                 p.weights == nullptr ? "num_tokens * top_k" : "num_tokens",
                                 p.weights == nullptr ? choices : p.num_tokens));
  PHX_RETURN_IF_ERROR(CheckPointer("GroupedMatmul: ids", p.ids, choices));
  for (size_t e = 0; e < p.experts.size(); ++e) {
    const PackedWeight* w = p.experts[e];
    if (w == nullptr) continue;
    if (!w->subtrees().empty()) {
      return Invalid("GroupedMatmul: experts[", e, "] is K-sharded, must be packed without shard_cuts");
    }
    if (w->k() != p.x.cols || w->n() != p.y.cols) {
      return Invalid("GroupedMatmul: experts[", e, "] has K = ", w->k(), " and N = ", w->n(),
                     ", must have x.cols = ", p.x.cols, " and y.cols = ", p.y.cols);
    }
  }
  return p.weights == nullptr ? absl::OkStatus() : CheckExpertCuts(p);
}

absl::Status CheckHostContents(const GroupedMatmulParams& p) {
  for (int64_t i = 0; i < p.num_tokens * p.top_k; ++i) {
    PHX_RETURN_IF_ERROR(CheckInRange("GroupedMatmul: ids", i, p.ids[i],
                                     i % p.top_k == 0 ? 0 : p.ids[i - 1] + 1,
                                     static_cast<int64_t>(p.experts.size())));
  }
  return absl::OkStatus();
}

namespace {

absl::Status CheckControls(size_t row, const SampleRow& r, int64_t vocab_size) {
  const auto name = [row] { return absl::StrCat("Sample: rows[", row, "]"); };
  const auto in_vocabulary = [vocab_size](int32_t id) { return id >= 0 && id < vocab_size; };
  if (!(r.min_p >= 0 && r.min_p <= 1)) return Invalid(name(), ".min_p is ", r.min_p, ", must be in [0, 1]");
  if (!(r.repetition_penalty > 0) || !std::isfinite(r.repetition_penalty)) {
    return Invalid(name(), ".repetition_penalty is ", r.repetition_penalty, ", must be finite and above 0");
  }
  if (!std::isfinite(r.frequency_penalty) || !std::isfinite(r.presence_penalty)) {
    return Invalid(name(), ".frequency_penalty is ", r.frequency_penalty, " and presence_penalty ",
                   r.presence_penalty, ", must be finite");
  }
  if (r.has_penalties() && r.target < 0 && r.counts == nullptr) {
    return Invalid(name(), ".counts is null, must be set with a penalty");
  }
  if (r.counts != nullptr && r.counts->vocab_size() != vocab_size) {
    return Invalid(name(), ".counts is of a vocabulary of ", r.counts->vocab_size(), ", must be of ",
                   vocab_size);
  }
  if (r.bias != nullptr) {
    for (const TokenBias& b : *r.bias) {
      if (in_vocabulary(b.id) && std::isfinite(b.bias)) continue;
      return Invalid(name(), ".bias of token ", b.id, " is ", b.bias,
                     ", must be finite and of [0, vocab_size = ", vocab_size, ")");
    }
  }
  for (const auto& ids : r.banned) {
    if (ids == nullptr || std::all_of(ids->begin(), ids->end(), in_vocabulary)) continue;
    return Invalid(name(), ".banned holds ", *std::find_if_not(ids->begin(), ids->end(), in_vocabulary),
                   ", must be in [0, vocab_size = ", vocab_size, ")");
  }
  return absl::OkStatus();
}

}  // namespace

absl::Status Validate(const SampleParams& p) {
  PHX_RETURN_IF_ERROR(CheckAtLeast("Sample: num_rows", p.num_rows, 0));
  PHX_RETURN_IF_ERROR(CheckAtLeast("Sample: vocab_size", p.vocab_size, 1));
  PHX_RETURN_IF_ERROR(CheckAtLeast("Sample: num_shares", p.num_shares, 1));
  PHX_RETURN_IF_ERROR(CheckEqual("Sample: share_begin.size()", static_cast<int64_t>(p.share_begin.size()),
                                 "num_shares + 1", p.num_shares + 1));
  PHX_RETURN_IF_ERROR(CheckEqual("Sample: share_begin.front()", p.share_begin.front(), "the first token", 0));
  PHX_RETURN_IF_ERROR(
      CheckEqual("Sample: share_begin.back()", p.share_begin.back(), "vocab_size", p.vocab_size));
  for (int s = 0; s < p.num_shares; ++s) {
    const int64_t size = p.share_begin[s + 1] - p.share_begin[s];
    if (size < 0 || size > p.share_cols) {
      return Invalid("Sample: share ", s, " has ", size,
                     " tokens, must be in [0, share_cols = ", p.share_cols, "]");
    }
  }
  PHX_RETURN_IF_ERROR(
      CheckEqual("Sample: rows.size()", static_cast<int64_t>(p.rows.size()), "num_rows", p.num_rows));
  PHX_RETURN_IF_ERROR(CheckPointer("Sample: logits", p.logits, p.num_rows * p.vocab_size));
  PHX_RETURN_IF_ERROR(CheckPointer("Sample: ids", p.ids, p.num_rows));
  for (size_t i = 0; i < p.rows.size(); ++i) {
    const SampleRow& r = p.rows[i];
    const auto name = [i] { return absl::StrCat("Sample: rows[", i, "]"); };
    if (!(r.temperature >= 0) || !std::isfinite(r.temperature)) {
      return Invalid(name(), ".temperature is ", r.temperature, ", must be finite and at least 0");
    }
    if (!(r.top_p >= 0 && r.top_p <= 1)) return Invalid(name(), ".top_p is ", r.top_p, ", must be in [0, 1]");
    if (r.top_k < 0) return Invalid(name(), ".top_k is ", r.top_k, ", must be at least 0");
    PHX_RETURN_IF_ERROR(CheckControls(i, r, p.vocab_size));
    if (r.target < -1 || r.target >= p.vocab_size) {
      return Invalid(name(), ".target is ", r.target, ", must be in [-1, vocab_size = ", p.vocab_size, ")");
    }
    if (r.num_top < -1 || r.num_top > kMaxTopLogprobs) {
      return Invalid(name(), ".num_top is ", r.num_top, ", must be in [-1, ", kMaxTopLogprobs, "]");
    }
  }
  return absl::OkStatus();
}

}  // namespace phalanx
