#include "kernels/cuda/cuda_memory.h"

#include <algorithm>
#include <bit>

#include "absl/strings/str_cat.h"
#include "kernels/cuda/half.h"
#include "kernels/dequantize.h"
#include "kernels/numeric.h"
#include "kernels/reference/host_objects.h"

namespace phalanx::cuda {
namespace {

int64_t RoundUp(int64_t n, int64_t unit) { return (n + unit - 1) / unit * unit; }
int64_t Pitch(int dim) { return RoundUp(dim, 8); }

// Appends the segments of columns [begin, end): as few as are allowed, alike but for the last.
void AppendSegments(int64_t begin, int64_t end, std::vector<GemmSegment>* segments) {
  const int64_t size = end - begin;
  if (size == 0) return;
  const int64_t count = (size + kGemmSegment - 1) / kGemmSegment;
  const int64_t step = RoundUp((size + count - 1) / count, kGemmBlock);
  for (int64_t at = begin; at < end; at += step) {
    GemmSegment s;
    s.first_block = segments->empty() ? 0 : segments->back().first_block + segments->back().blocks;
    s.x_begin = static_cast<int32_t>(at);
    s.x_cols = static_cast<int32_t>(std::min(step, end - at));
    s.blocks = static_cast<int32_t>(RoundUp(s.x_cols, kGemmBlock) / kGemmBlock);
    segments->push_back(s);
  }
}

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
    buffer_ = nullptr;
    PHX_ASSIGN_OR_RETURN(buffer_, CudaBuffer::Create(runtime_, bytes + bytes / 4));
  }
  return buffer_->data();
}

absl::StatusOr<std::unique_ptr<CudaWeight>> CudaWeight::Pack(const std::shared_ptr<Runtime>& runtime,
                                                             bool half, const PackWeightParams& p) {
  std::unique_ptr<CudaWeight> w(new CudaWeight);
  w->owner_ = runtime.get();
  w->k_ = p.cols.size();
  for (const WeightPiece& piece : p.pieces) w->n_ += piece.rows.size();
  std::vector<GemmSegment> segments;
  std::vector<int32_t> shard_begin = {0}, tree_begin = {0};
  if (p.shard_cuts.empty()) {
    AppendSegments(0, w->k_, &segments);
    shard_begin.push_back(static_cast<int32_t>(segments.size()));
    tree_begin.push_back(1);
    w->max_shards_per_tree_ = 1;
  } else {
    for (size_t i = 1; i < p.shard_cuts.size(); ++i) {
      AppendSegments(p.shard_cuts[i - 1] - p.cols.begin, p.shard_cuts[i] - p.cols.begin, &segments);
      shard_begin.push_back(static_cast<int32_t>(segments.size()));
    }
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

  // Tile by tile: rows as fp32, then into fragments.
  const int64_t tile_elements = int64_t{w->total_blocks_} * kGemmTileBlock;
  PHX_ASSIGN_OR_RETURN(w->fragments_, CudaBuffer::Create(runtime, w->row_tiles_ * tile_elements * 2));
  if (tile_elements == 0) return w;
  std::vector<float> rows(static_cast<size_t>(kGemmRowTile * w->k_));
  std::vector<uint16_t> fragments(static_cast<size_t>(tile_elements));
  size_t piece = 0;
  int64_t piece_row = 0;
  for (int tile = 0; tile < w->row_tiles_; ++tile) {
    std::fill(rows.begin(), rows.end(), 0.0f);
    for (int64_t r = 0; r < kGemmRowTile && piece < p.pieces.size();) {
      const WeightPiece& from = p.pieces[piece];
      const int64_t count = std::min(kGemmRowTile - r, from.rows.size() - piece_row);
      const int64_t first = from.rows.begin + piece_row;
      if (count > 0) {
        DequantizeTile(from.source, {first, first + count}, p.cols, rows.data() + r * w->k_, w->k_);
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
          const float v = rows[static_cast<size_t>(r * w->k_ + s.x_begin + c)];
          fragments[static_cast<size_t>(at + r % 8 * 32 + r / 8 * 2)] =
              half ? HalfFromFloat(v) : Bf16FromFloat(v);
        }
      }
    }
    PHX_RETURN_IF_ERROR(runtime->Copy(w->fragments_->as<uint16_t>() + tile * tile_elements, fragments.data(),
                                      tile_elements * 2, CopyKind::kToDevice));
  }
  return w;
}

GemmArgs CudaWeight::Args(bool packed) const {
  GemmArgs args;
  args.weight = fragments();
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

int64_t CudaKvCache::BlockBytes(const KvCacheShape& s) {
  return int64_t{s.num_layers} * s.num_kv_heads * s.block_size * (Pitch(s.key_dim) + Pitch(s.value_dim)) * 2;
}

absl::StatusOr<std::unique_ptr<CudaKvCache>> CudaKvCache::Create(const std::shared_ptr<Runtime>& runtime,
                                                                 const KvCacheShape& shape,
                                                                 int64_t num_blocks) {
  std::unique_ptr<CudaKvCache> cache(new CudaKvCache);
  cache->owner_ = runtime.get();
  cache->shape_ = shape;
  cache->num_blocks_ = num_blocks;
  const int64_t rows = int64_t{shape.num_layers} * num_blocks * shape.num_kv_heads * shape.block_size;
  PHX_ASSIGN_OR_RETURN(cache->keys_, CudaBuffer::Create(runtime, rows * Pitch(shape.key_dim) * 2));
  PHX_ASSIGN_OR_RETURN(cache->values_, CudaBuffer::Create(runtime, rows * Pitch(shape.value_dim) * 2));
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
  args.keys = keys_->as<uint16_t>() + layer * rows * args.key_pitch;
  args.values = values_->as<uint16_t>() + layer * rows * args.value_pitch;
  return args;
}

}  // namespace phalanx::cuda
