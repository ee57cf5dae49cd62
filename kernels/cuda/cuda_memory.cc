#include "kernels/cuda/cuda_memory.h"

#include <algorithm>
#include <bit>

#include "absl/strings/str_cat.h"
#include "kernels/cuda/half.h"
#include "kernels/cuda/quant_weight.h"
#include "kernels/dequantize.h"
#include "kernels/numeric.h"
#include "kernels/quantised_kv.h"
#include "kernels/reference/host_objects.h"

namespace phalanx::cuda {
namespace {

int64_t RoundUp(int64_t n, int64_t unit) { return (n + unit - 1) / unit * unit; }
int64_t Pitch(int dim) { return RoundUp(dim, 8); }

}  // namespace

absl::StatusOr<std::unique_ptr<CudaBuffer>> CudaBuffer::Create(const std::shared_ptr<Runtime>& runtime,
                                                               int64_t bytes) {
  if (bytes < 0) {
    return absl::InvalidArgumentError(absl::StrCat("Allocate: bytes is ", bytes, ", must be at least 0"));
  }
  PHX_ASSIGN_OR_RETURN(void* const data, runtime->Allocate(bytes));
  return std::unique_ptr<CudaBuffer>(new CudaBuffer(runtime, data, bytes));
}

absl::StatusOr<void*> Scratch::Get(int64_t bytes) {
  if (buffer_ == nullptr || buffer_->bytes() < bytes) {
    if (keep_) kept_.push_back(std::move(buffer_));
    buffer_ = nullptr;
    keep_ = false;
    PHX_ASSIGN_OR_RETURN(buffer_, CudaBuffer::Create(runtime_, bytes + bytes / 4));
  }
  return buffer_->data();
}

absl::StatusOr<std::unique_ptr<CudaWeight>> CudaWeight::Pack(const std::shared_ptr<Runtime>& runtime,
                                                             bool half, const PackWeightParams& p) {
  if (std::optional<QuantPacking> quant = QuantPacking::Plan(p)) {
    PHX_ASSIGN_OR_RETURN(std::unique_ptr<CudaWeight> w,
                         Make(runtime, p, quant->segments(), quant->shard_begin()));
    PHX_ASSIGN_OR_RETURN(const bool kept, w->PackQuantised(runtime, &*quant));
    if (kept) return w;
  }
  std::vector<GemmSegment> segments;
  std::vector<int32_t> shard_begin = {0};
  std::vector<int64_t> cuts = p.shard_cuts;
  if (cuts.empty()) cuts = {p.cols.begin, p.cols.end};
  for (size_t i = 1; i < cuts.size(); ++i) {
    AppendSegments(cuts[i - 1] - p.cols.begin, cuts[i] - cuts[i - 1], &segments);
    shard_begin.push_back(static_cast<int32_t>(segments.size()));
  }
  PHX_ASSIGN_OR_RETURN(std::unique_ptr<CudaWeight> w, Make(runtime, p, segments, shard_begin));
  PHX_RETURN_IF_ERROR(w->PackHalves(runtime, half, p, segments));
  return w;
}

absl::StatusOr<std::unique_ptr<CudaWeight>> CudaWeight::Make(const std::shared_ptr<Runtime>& runtime,
                                                             const PackWeightParams& p,
                                                             const std::vector<GemmSegment>& segments,
                                                             const std::vector<int32_t>& shard_begin) {
  std::unique_ptr<CudaWeight> w(new CudaWeight);
  w->owner_ = runtime.get();
  w->k_ = p.cols.size();
  for (const WeightPiece& piece : p.pieces) w->n_ += piece.rows.size();
  std::vector<int32_t> tree_begin = {0};
  if (p.shard_cuts.empty()) {
    tree_begin.push_back(1);
    w->max_shards_per_tree_ = 1;
  } else {
    w->subtrees_ = SubtreesOf(p.first_shard, p.first_shard + static_cast<int>(p.shard_cuts.size()) - 1);
    for (const Subtree& tree : w->subtrees_) {
      tree_begin.push_back(tree_begin.back() + tree.count);
      w->max_shards_per_tree_ = std::max(w->max_shards_per_tree_, tree.count);
    }
  }
  w->num_trees_ = static_cast<int>(tree_begin.size()) - 1;
  w->num_segments_ = static_cast<int>(segments.size());
  w->total_blocks_ = segments.empty() ? 0 : segments.back().first_block + segments.back().blocks;
  w->row_tiles_ = static_cast<int>(RoundUp(w->n_, kGemmRowTile) / kGemmRowTile);
  std::vector<GemmSegment> packed = segments;
  for (GemmSegment& s : packed) {
    w->aligned_ = w->aligned_ && s.x_begin % 8 == 0;
    s.x_begin = s.first_block * kGemmBlock;
    s.x_cols = s.blocks * kGemmBlock;
  }
  PHX_ASSIGN_OR_RETURN(w->direct_, CudaBuffer::Of(runtime, segments));
  PHX_ASSIGN_OR_RETURN(w->packed_, CudaBuffer::Of(runtime, packed));
  PHX_ASSIGN_OR_RETURN(w->shard_begin_, CudaBuffer::Of(runtime, shard_begin));
  PHX_ASSIGN_OR_RETURN(w->tree_begin_, CudaBuffer::Of(runtime, tree_begin));
  return w;
}

absl::StatusOr<bool> CudaWeight::PackQuantised(const std::shared_ptr<Runtime>& runtime, QuantPacking* plan) {
  quant_ = plan->format();
  if (!plan->gathered().empty()) {
    aligned_ = false;
    gathered_ = plan->gathered();
    PHX_ASSIGN_OR_RETURN(columns_, CudaBuffer::Of(runtime, plan->gathered()));
  }
  const int64_t tile_bytes = int64_t{total_blocks_} * quant_.block_bytes;
  PHX_ASSIGN_OR_RETURN(fragments_, CudaBuffer::Create(runtime, row_tiles_ * tile_bytes));
  std::vector<uint8_t> bytes;
  for (int tile = 0; tile < row_tiles_ && tile_bytes > 0; ++tile) {
    if (!plan->PackTile(tile, &bytes)) return false;
    PHX_RETURN_IF_ERROR(runtime->Copy(fragments_->as<char>() + tile * tile_bytes, bytes.data(), tile_bytes,
                                      CopyKind::kToDevice));
  }
  return true;
}

// Tile by tile: rows as fp32, then into fragments.
absl::Status CudaWeight::PackHalves(const std::shared_ptr<Runtime>& runtime, bool half,
                                    const PackWeightParams& p, const std::vector<GemmSegment>& segments) {
  const int64_t tile_elements = int64_t{total_blocks_} * kGemmTileBlock;
  PHX_ASSIGN_OR_RETURN(fragments_, CudaBuffer::Create(runtime, row_tiles_ * tile_elements * 2));
  if (tile_elements == 0) return absl::OkStatus();
  std::vector<float> rows(static_cast<size_t>(kGemmRowTile * k_));
  std::vector<uint16_t> fragments(static_cast<size_t>(tile_elements));
  size_t piece = 0;
  int64_t piece_row = 0;
  for (int tile = 0; tile < row_tiles_; ++tile) {
    std::fill(rows.begin(), rows.end(), 0.0f);
    for (int64_t r = 0; r < kGemmRowTile && piece < p.pieces.size();) {
      const WeightPiece& from = p.pieces[piece];
      const int64_t count = std::min(kGemmRowTile - r, from.rows.size() - piece_row);
      const int64_t first = from.rows.begin + piece_row;
      if (count > 0) {
        DequantizeTile(from.source, {first, first + count}, p.cols, rows.data() + r * k_, k_);
      }
      r += count;
      piece_row += count;
      if (piece_row == from.rows.size()) ++piece, piece_row = 0;
    }
    std::fill(fragments.begin(), fragments.end(), uint16_t{0});
    for (const GemmSegment& s : segments) {
      for (int64_t c = 0; c < s.x_cols; ++c) {
        // Column c of a step: pair c % 8 / 2 of lanes, element c % 2, registers from 2 on for the second
        // half.
        const int64_t step = s.first_block * 4 + c / 16;
        const int64_t at = step * 256 + c % 8 / 2 * 8 + c % 16 / 8 * 4 + c % 2;
        for (int64_t r = 0; r < kGemmRowTile; ++r) {
          const float v = rows[static_cast<size_t>(r * k_ + s.x_begin + c)];
          fragments[static_cast<size_t>(at + r % 8 * 32 + r / 8 * 2)] =
              half ? HalfFromFloat(v) : Bf16FromFloat(v);
        }
      }
    }
    PHX_RETURN_IF_ERROR(runtime->Copy(fragments_->as<uint16_t>() + tile * tile_elements, fragments.data(),
                                      tile_elements * 2, CopyKind::kToDevice));
  }
  return absl::OkStatus();
}

bool CudaWeight::LiesAs(const CudaWeight& other) const {
  const QuantFormat &a = quant_, &b = other.quant_;
  return a.meta == b.meta && a.bits == b.bits && a.slot_shift == b.slot_shift && a.meta_rows == b.meta_rows &&
         gathered_ == other.gathered_;
}

GemmArgs CudaWeight::Args(bool packed) const {
  GemmArgs args;
  args.weight = fragments();
  args.quant = quant_;
  args.n = static_cast<int>(n_);
  args.row_tiles = row_tiles_;
  args.total_blocks = total_blocks_;
  args.segments = (packed ? packed_ : direct_)->as<const GemmSegment>();
  args.shard_begin = shard_begin_->as<const int32_t>();
  args.tree_begin = tree_begin_->as<const int32_t>();
  args.num_segments = num_segments_;
  args.num_trees = num_trees_;
  args.max_shards_per_tree = max_shards_per_tree_;
  return args;
}

PackRowsArgs CudaWeight::PackArgs() const {
  PackRowsArgs args;
  args.segments = direct_->as<const GemmSegment>();
  args.num_segments = num_segments_;
  args.total_blocks = total_blocks_;
  args.columns = columns_ == nullptr ? nullptr : columns_->as<const int32_t>();
  return args;
}

absl::StatusOr<std::unique_ptr<CudaRopeTable>> CudaRopeTable::Create(const std::shared_ptr<Runtime>& runtime,
                                                                     const RopeConfig& config,
                                                                     int64_t num_positions) {
  std::unique_ptr<CudaRopeTable> table(new CudaRopeTable);
  table->owner_ = runtime.get();
  const HostRopeTable host(config, num_positions);
  const int half = host.rotary_dim() / 2;
  const int64_t count = num_positions * half;
  std::vector<float> cos, sin;
  if (count > 0) {
    cos.assign(host.cos(0), host.cos(0) + count);
    sin.assign(host.sin(0), host.sin(0) + count);
  }
  PHX_ASSIGN_OR_RETURN(table->cos_, CudaBuffer::Of(runtime, cos));
  PHX_ASSIGN_OR_RETURN(table->sin_, CudaBuffer::Of(runtime, sin));
  table->args_ = {table->cos_->as<const float>(), table->sin_->as<const float>(), num_positions, half,
                  host.interleaved()};
  return table;
}

int64_t CudaKvCache::BlockBytes(const KvCacheShape& s, KvCodec codec) {
  const int64_t row = codec != KvCodec::kNone ? Pitch(s.key_dim) + Pitch(s.value_dim) +
                                                    2 * (NumKvGroups(s.key_dim) + NumKvGroups(s.value_dim))
                                              : 2 * (Pitch(s.key_dim) + Pitch(s.value_dim));
  return int64_t{s.num_layers} * s.num_kv_heads * s.block_size * row;
}

absl::StatusOr<std::unique_ptr<CudaKvCache>> CudaKvCache::Create(const std::shared_ptr<Runtime>& runtime,
                                                                 const KvCacheShape& shape, KvCodec codec,
                                                                 int64_t num_blocks) {
  std::unique_ptr<CudaKvCache> cache(new CudaKvCache);
  cache->owner_ = runtime.get();
  cache->shape_ = shape;
  cache->codec_ = codec;
  cache->num_blocks_ = num_blocks;
  const int64_t rows = int64_t{shape.num_layers} * num_blocks * shape.num_kv_heads * shape.block_size;
  const int64_t size = codec != KvCodec::kNone ? 1 : 2;
  PHX_ASSIGN_OR_RETURN(cache->keys_, CudaBuffer::Create(runtime, rows * Pitch(shape.key_dim) * size));
  PHX_ASSIGN_OR_RETURN(cache->values_, CudaBuffer::Create(runtime, rows * Pitch(shape.value_dim) * size));
  if (codec == KvCodec::kNone) return cache;
  PHX_ASSIGN_OR_RETURN(cache->key_scales_,
                       CudaBuffer::Create(runtime, rows * NumKvGroups(shape.key_dim) * 2));
  PHX_ASSIGN_OR_RETURN(cache->value_scales_,
                       CudaBuffer::Create(runtime, rows * NumKvGroups(shape.value_dim) * 2));
  return cache;
}

CacheArgs CudaKvCache::Layer(int layer) const {
  CacheArgs args;
  args.num_heads = shape_.num_kv_heads;
  args.key_dim = shape_.key_dim;
  args.value_dim = shape_.value_dim;
  args.key_pitch = static_cast<int>(Pitch(shape_.key_dim));
  args.value_pitch = static_cast<int>(Pitch(shape_.value_dim));
  args.block_size = shape_.block_size;
  args.block_shift = std::countr_zero(static_cast<unsigned>(shape_.block_size));
  args.num_blocks = num_blocks_;
  const int64_t rows = num_blocks_ * shape_.num_kv_heads * shape_.block_size;
  args.codec = codec_;
  const int size = codec_ != KvCodec::kNone ? 1 : 2;
  args.keys = reinterpret_cast<uint16_t*>(keys_->as<char>() + layer * rows * args.key_pitch * size);
  args.values = reinterpret_cast<uint16_t*>(values_->as<char>() + layer * rows * args.value_pitch * size);
  if (codec_ != KvCodec::kNone) {
    args.key_scales = key_scales_->as<uint16_t>() + layer * rows * NumKvGroups(shape_.key_dim);
    args.value_scales = value_scales_->as<uint16_t>() + layer * rows * NumKvGroups(shape_.value_dim);
  }
  return args;
}

}  // namespace phalanx::cuda
