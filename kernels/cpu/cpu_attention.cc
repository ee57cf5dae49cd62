#include "kernels/cpu/cpu_attention.h"

#include <algorithm>
#include <cstring>

#include "base/status_macros.h"
#include "kernels/numeric.h"

namespace phalanx {
namespace {

constexpr int kMaxVectors = 48;  // of a task; more when one row's heads are more
constexpr int kMaxHeads = 32;

int64_t RoundUp(int64_t n, int64_t unit) { return (n + unit - 1) / unit * unit; }
int ValuePanels(int value_dim) { return (value_dim + kPanel - 1) / kPanel; }

template <typename T>
T Rounded(float v);
template <>
float Rounded<float>(float v) {
  return v;
}
template <>
uint16_t Rounded<uint16_t>(float v) {
  return Bf16FromFloat(v);
}
template <typename T>
int Place(int j) {
  return sizeof(T) == 2 ? Bf16PanelPlace(j) : j;
}

template <typename T>
void StoreInPanels(const KvCacheShape& s, int64_t offset, const float* key, const float* value, T* keys,
                   T* values) {
  T* to = keys + offset / kPanel * s.key_dim * kPanel + Place<T>(static_cast<int>(offset % kPanel));
  for (int d = 0; d < s.key_dim; ++d) to[int64_t{d} * kPanel] = Rounded<T>(key[d]);
  for (int d = 0; d < s.value_dim; ++d) {
    values[(int64_t{d / kPanel} * s.block_size + offset) * kPanel + Place<T>(d % kPanel)] =
        Rounded<T>(value[d]);
  }
}

template <typename T>
void StoreInRows(const KvCacheShape& s, int64_t offset, const float* key, const float* value, T* keys,
                 T* values) {
  for (int d = 0; d < s.key_dim; ++d) keys[offset * s.key_dim + d] = Rounded<T>(key[d]);
  for (int d = 0; d < s.value_dim; ++d) values[offset * s.value_dim + d] = Rounded<T>(value[d]);
}

// One element of a block's keys.
template <typename T>
T KeyAt(const CpuKvCache& cache, const T* keys, int64_t offset, int d) {
  const KvCacheShape& s = cache.shape();
  if (!cache.panels()) return keys[offset * s.key_dim + d];
  return keys[(offset / kPanel * s.key_dim + d) * kPanel + Place<T>(static_cast<int>(offset % kPanel))];
}

// Gathers the keys and values of `num_keys` positions from `begin` (a multiple of the chunk) into one block
// of kAttentionChunk keys. keys or values may be null.
template <typename T>
void Gather(const CpuKvCache& cache, const AttentionParams& p, const AttentionSequence& sequence, int head,
            int64_t begin, int num_keys, T* keys, T* values) {
  const KvCacheShape& s = cache.shape();
  for (int j = 0; j < num_keys; ++j) {
    const int64_t block = sequence.block_table[(begin + j) / s.block_size];
    const int64_t offset = (begin + j) % s.block_size;
    const T* from_keys = reinterpret_cast<const T*>(cache.Keys(block, p.layer, head));
    const T* from_values = reinterpret_cast<const T*>(cache.Values(block, p.layer, head));
    if (keys != nullptr) {
      T* to = keys + int64_t{j / kPanel} * s.key_dim * kPanel + Place<T>(j % kPanel);
      for (int d = 0; d < s.key_dim; ++d) to[int64_t{d} * kPanel] = KeyAt(cache, from_keys, offset, d);
    }
    if (values == nullptr) continue;
    const int value_dim = p.latent_value_dim > 0 ? p.latent_value_dim : s.value_dim;
    for (int d = 0; d < value_dim; ++d) {
      const T v =
          p.latent_value_dim > 0 ? KeyAt(cache, from_keys, offset, d) : from_values[offset * s.value_dim + d];
      values[(int64_t{d / kPanel} * kAttentionChunk + j) * kPanel + Place<T>(d % kPanel)] = v;
    }
  }
}

}  // namespace

int64_t CpuKvCache::BlockBytes(const KvCacheShape& s, bool bf16) {
  const int64_t elements = int64_t{s.block_size} * (s.key_dim + ValuePanels(s.value_dim) * kPanel);
  return int64_t{s.num_layers} * s.num_kv_heads * elements * (bf16 ? 2 : 4);
}

absl::StatusOr<std::unique_ptr<CpuKvCache>> CpuKvCache::Create(const KvCacheShape& shape, int64_t num_blocks,
                                                               bool bf16) {
  std::unique_ptr<CpuKvCache> cache(new CpuKvCache);
  cache->shape_ = shape;
  cache->num_blocks_ = num_blocks;
  cache->bf16_ = bf16;
  PHX_ASSIGN_OR_RETURN(cache->memory_, HostBuffer::Create(BlockBytes(shape, bf16) * num_blocks));
  return cache;
}

const char* CpuKvCache::Keys(int64_t block, int layer, int head) const {
  const int64_t head_bytes = BlockBytes({1, 1, shape_.key_dim, shape_.value_dim, shape_.block_size}, bf16_);
  return static_cast<const char*>(memory_->data()) +
         ((block * shape_.num_layers + layer) * shape_.num_kv_heads + head) * head_bytes;
}

const char* CpuKvCache::Values(int64_t block, int layer, int head) const {
  return Keys(block, layer, head) + int64_t{shape_.block_size} * shape_.key_dim * (bf16_ ? 2 : 4);
}

void CpuKvCache::Store(int64_t slot, int layer, int head, const float* key, const float* value) {
  const int64_t block = slot / shape_.block_size, offset = slot % shape_.block_size;
  char* keys = const_cast<char*>(Keys(block, layer, head));
  char* values = const_cast<char*>(Values(block, layer, head));
  const auto store = [&](auto* k, auto* v) {
    if (panels()) {
      StoreInPanels(shape_, offset, key, value, k, v);
    } else {
      StoreInRows(shape_, offset, key, value, k, v);
    }
  };
  if (bf16_) {
    store(reinterpret_cast<uint16_t*>(keys), reinterpret_cast<uint16_t*>(values));
  } else {
    store(reinterpret_cast<float*>(keys), reinterpret_cast<float*>(values));
  }
}

struct CpuAttention::Layout {
  Layout(const AttentionParams& p, const CpuKvCache& cache, int max_vectors) {
    const KvCacheShape& s = cache.shape();
    const int64_t value_width =
        int64_t{ValuePanels(p.latent_value_dim > 0 ? p.latent_value_dim : s.value_dim)} * kPanel;
    const int64_t element = cache.bf16() ? 2 : 4;
    const bool gather_keys = !cache.panels();
    const bool gather_values = gather_keys || p.latent_value_dim > 0;
    const auto take = [this](int64_t size) {
      const int64_t at = bytes;
      bytes += RoundUp(size, 64);
      return at;
    };
    q = take(max_vectors * RoundUp(s.key_dim, 8) * 4);
    scores = take(int64_t{max_vectors} * (kAttentionChunk + kPanel) * 4);
    weights = take(int64_t{max_vectors} * kAttentionChunk * 4);
    partial = take(max_vectors * value_width * 4);
    out = take(max_vectors * value_width * 4);
    max = take(max_vectors * 4);
    sum = take(max_vectors * 4);
    num_keys = take(max_vectors * 4);
    key_pointers = take(kAttentionChunk * 8);
    value_pointers = take(kAttentionChunk * 8);
    if (gather_keys) keys = take(kAttentionChunk * s.key_dim * element);
    if (gather_values) values = take(kAttentionChunk * value_width * element);
  }
  int64_t bytes = 0;
  int64_t q, scores, weights, partial, out, max, sum, num_keys, key_pointers, value_pointers;
  int64_t keys = -1, values = -1;  // -1: read where they lie
};

absl::Status CpuAttention::Run(const AttentionParams& p, const CpuKvCache& cache) {
  // Runs of heads that share a KV head, and rows enough to fill a task.
  tasks_.clear();
  int max_vectors = 1;
  for (const AttentionSequence& sequence : p.sequences) {
    for (int h = 0; h < p.num_heads;) {
      int end = h + 1;
      while (end < p.num_heads && end - h < kMaxHeads && p.kv_head_of[end] == p.kv_head_of[h]) ++end;
      // A power of two of rows, cut where positions are multiples of it: so no task straddles two chunks.
      int rows = 1;
      while (rows * 2 * (end - h) <= kMaxVectors) rows *= 2;
      for (int64_t row = 0; row < sequence.num_rows;) {
        const int64_t position = sequence.first_position + row;
        const int64_t last = std::min(sequence.num_rows, row + rows - position % rows);
        tasks_.push_back({&sequence, row, static_cast<int>(last - row), h, end - h});
        max_vectors = std::max(max_vectors, static_cast<int>(last - row) * (end - h));
        row = last;
      }
      h = end;
    }
  }
  const Layout layout(p, cache, max_vectors);
  for (Scratch& s : scratch_) PHX_RETURN_IF_ERROR(s.Get(layout.bytes).status());
  pool_.Run(static_cast<int64_t>(tasks_.size()), [&](int64_t task, int thread) {
    RunTask(p, cache, tasks_[static_cast<size_t>(task)], layout,
            static_cast<char*>(*scratch_[static_cast<size_t>(thread)].Get(0)));
  });
  return absl::OkStatus();
}

void CpuAttention::RunTask(const AttentionParams& p, const CpuKvCache& cache, const Task& task,
                           const Layout& layout, char* scratch) {
  const KvCacheShape& s = cache.shape();
  const AttentionSequence& sequence = *task.sequence;
  const int head = p.kv_head_of[task.first_head];
  const int value_dim = p.latent_value_dim > 0 ? p.latent_value_dim : s.value_dim;
  const int num_vectors = task.num_rows * task.num_heads;
  const auto floats = [scratch](int64_t at) { return reinterpret_cast<float*>(scratch + at); };
  const auto row_of = [&](const Matrix& m, int v, int64_t width) {
    return static_cast<float*>(m.data) +
           (sequence.first_row + task.first_row + v / task.num_heads) * m.stride +
           (task.first_head + v % task.num_heads) * width;
  };

  // Vector v is row v / heads, head v % heads; packed as the products want it.
  float* q = floats(layout.q);
  const int64_t depth = RoundUp(s.key_dim, 8);
  const int max_tile = kAvx2GemmF32.max_tile_rows;
  const int tiles = NumTiles(num_vectors, max_tile);
  for (int t = 0; t < tiles; ++t) {
    const int begin = TileBegin(num_vectors, tiles, max_tile, true, t);
    const int rows = TileBegin(num_vectors, tiles, max_tile, true, t + 1) - begin;
    for (int i = 0; i < rows; ++i) {
      const float* from = row_of(p.q, begin + i, s.key_dim);
      for (int64_t d = 0; d < s.key_dim; d += 8) {
        std::memcpy(q + begin * depth + d * rows + i * 8, from + d,
                    static_cast<size_t>(std::min<int64_t>(8, s.key_dim - d)) * 4);
      }
    }
  }

  auto* num_keys = reinterpret_cast<int*>(scratch + layout.num_keys);
  auto** keys = reinterpret_cast<const void**>(scratch + layout.key_pointers);
  auto** values = reinterpret_cast<const void**>(scratch + layout.value_pointers);
  AttentionChunkParams c;
  c.bf16 = cache.bf16();
  c.num_vectors = num_vectors;
  c.q = q;
  c.key_dim = s.key_dim;
  c.value_panels = ValuePanels(value_dim);
  c.keys = keys;
  c.values = values;
  c.num_keys = num_keys;
  c.scale = p.scale;
  c.scores = floats(layout.scores);
  c.weights = floats(layout.weights);
  c.partial = floats(layout.partial);
  c.max = floats(layout.max);
  c.sum = floats(layout.sum);
  c.out = floats(layout.out);

  const int64_t first_position = sequence.first_position + task.first_row;
  const int64_t last_position = first_position + task.num_rows - 1;
  for (int64_t begin = 0; begin <= last_position; begin += kAttentionChunk) {
    const auto all = static_cast<int>(std::min<int64_t>(kAttentionChunk, last_position + 1 - begin));
    for (int v = 0; v < num_vectors; ++v) {
      num_keys[v] = static_cast<int>(
          std::min<int64_t>(kAttentionChunk, first_position + v / task.num_heads + 1 - begin));
    }
    c.first = begin == 0;
    if (layout.values >= 0) {
      const auto gather = [&](auto* k, auto* v) {
        Gather(cache, p, sequence, head, begin, all, layout.keys >= 0 ? k : nullptr, v);
      };
      char* k = scratch + std::max<int64_t>(layout.keys, 0);
      char* v = scratch + layout.values;
      if (cache.bf16()) {
        gather(reinterpret_cast<uint16_t*>(k), reinterpret_cast<uint16_t*>(v));
      } else {
        gather(reinterpret_cast<float*>(k), reinterpret_cast<float*>(v));
      }
    }
    // Latent values of panel caches: keys are read where they lie, values from the gathered block, cut alike.
    const bool in_place = layout.keys < 0;
    c.block_keys = in_place ? s.block_size : kAttentionChunk;
    const int64_t element = cache.bf16() ? 2 : 4;
    c.value_rows = layout.values >= 0 ? kAttentionChunk : c.block_keys;
    for (int b = 0; b * c.block_keys < all; ++b) {
      const int64_t block = in_place ? sequence.block_table[begin / s.block_size + b] : 0;
      keys[b] = in_place ? cache.Keys(block, p.layer, head) : scratch + layout.keys;
      values[b] = layout.values >= 0 ? scratch + layout.values + int64_t{b} * c.block_keys * kPanel * element
                                     : cache.Values(block, p.layer, head);
    }
    Avx2AttentionChunk(c);
  }
  for (int v = 0; v < num_vectors; ++v) {
    Avx2Divide(c.out + int64_t{v} * c.value_panels * kPanel, c.sum[v], value_dim,
               row_of(p.out, v, value_dim));
  }
}

}  // namespace phalanx
