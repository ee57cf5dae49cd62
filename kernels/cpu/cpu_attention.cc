#include "kernels/cpu/cpu_attention.h"

#include <algorithm>
#include <cstring>

#include "base/status_macros.h"
#include "kernels/numeric.h"
#include "kernels/quantised_kv.h"

namespace phalanx {
namespace {

constexpr int kMaxVectors = 48;  // of a task
constexpr int kMaxHeads = 32;
constexpr int kValueTile = 32;  // keys of a tile of pairs of values

int64_t RoundUp(int64_t n, int64_t unit) { return (n + unit - 1) / unit * unit; }
int ValuePanels(int value_dim) { return (value_dim + kPanel - 1) / kPanel; }

// Where element (key j, channel d) is in panels of keys of depth `depth`.
template <PanelFormat kFormat>
int64_t KeyIndex(int64_t depth, int64_t j, int64_t d) {
  const auto place = static_cast<int>(j % kPanel);
  const int64_t panel = j / kPanel * depth * kPanel;
  if (kFormat == PanelFormat::kBf16Pairs) return panel + d / 2 * 2 * kPanel + place * 2 + d % 2;
  return panel + d * kPanel + (kFormat == PanelFormat::kBf16 ? Bf16PanelPlace(place) : place);
}

// Where element (key j, channel d) is in panels of values of `rows` keys.
template <PanelFormat kFormat>
int64_t ValueIndex(int64_t rows, int64_t j, int64_t d) {
  const auto place = static_cast<int>(d % kPanel);
  const int64_t panel = d / kPanel * rows * kPanel;
  if (kFormat == PanelFormat::kBf16Pairs) return panel + j / 2 * 2 * kPanel + place * 2 + j % 2;
  return panel + j * kPanel + (kFormat == PanelFormat::kBf16 ? Bf16PanelPlace(place) : place);
}

template <PanelFormat kFormat>
auto Rounded(float v) {
  if constexpr (kFormat == PanelFormat::kF32) {
    return v;
  } else {
    return Bf16FromFloat(v);
  }
}

// Calls f with the format as a type: f(std::integral_constant<PanelFormat, ...>).
template <typename F>
void WithFormat(PanelFormat format, F f) {
  switch (format) {
    case PanelFormat::kF32:
      return f(std::integral_constant<PanelFormat, PanelFormat::kF32>());
    case PanelFormat::kBf16:
      return f(std::integral_constant<PanelFormat, PanelFormat::kBf16>());
    case PanelFormat::kBf16Pairs:
      return f(std::integral_constant<PanelFormat, PanelFormat::kBf16Pairs>());
  }
}

// Likewise with the codec.
template <typename F>
void WithCodec(KvCodec codec, F f) {
  switch (codec) {
    case KvCodec::kNone:
      return f(std::integral_constant<KvCodec, KvCodec::kNone>());
    case KvCodec::kInt8:
      return f(std::integral_constant<KvCodec, KvCodec::kInt8>());
    case KvCodec::kE4m3:
      return f(std::integral_constant<KvCodec, KvCodec::kE4m3>());
  }
}

template <PanelFormat kFormat>
using Element = decltype(Rounded<kFormat>(0.0f));

template <PanelFormat kFormat>
void StorePosition(const CpuKvCache& cache, int64_t offset, const float* key, const float* value,
                   void* keys_out, void* values_out) {
  const KvCacheShape shape = cache.shape();
  const int64_t depth = cache.key_depth();
  auto* keys = static_cast<Element<kFormat>*>(keys_out);
  auto* values = static_cast<Element<kFormat>*>(values_out);
  if (!cache.panels()) {
    for (int d = 0; d < shape.key_dim; ++d) keys[offset * shape.key_dim + d] = Rounded<kFormat>(key[d]);
    for (int d = 0; d < shape.value_dim; ++d)
      values[offset * shape.value_dim + d] = Rounded<kFormat>(value[d]);
    return;
  }
  if constexpr (kFormat == PanelFormat::kBf16Pairs) {
    PairStoreKey(key, shape.key_dim, keys + KeyIndex<kFormat>(depth, offset, 0));
    PairStoreValue(value, shape.value_dim, offset % 2 != 0, int64_t{shape.block_size} * kPanel,
                   values + offset / 2 * 2 * kPanel);
    return;
  }
  for (int d = 0; d < shape.key_dim; ++d)
    keys[KeyIndex<kFormat>(depth, offset, d)] = Rounded<kFormat>(key[d]);
  for (int d = 0; d < shape.value_dim; ++d) {
    values[ValueIndex<kFormat>(shape.block_size, offset, d)] = Rounded<kFormat>(value[d]);
  }
}

// Quantises `n` channels of a position; calls put(d, code) for each.
template <KvCodec kCodec, typename Put>
void StoreCodes(const float* x, int64_t n, int64_t block_size, uint16_t* scales, Put put) {
  uint8_t codes[kKvGroup];
  for (int64_t begin = 0; begin < n; begin += kKvGroup, scales += block_size) {
    const int64_t end = std::min(n, begin + kKvGroup);
    *scales = QuantiseKv<kCodec>(x + begin, end - begin, codes);
    for (int64_t d = begin; d < end; ++d) put(d, codes[d - begin]);
  }
}

template <PanelFormat kFormat, KvCodec kCodec>
void StoreCodedPosition(const CpuKvCache& cache, int64_t offset, const float* key, const float* value,
                        uint8_t* keys, uint8_t* values, uint16_t* key_scales, uint16_t* value_scales) {
  const KvCacheShape shape = cache.shape();
  const int64_t depth = cache.key_depth();
  const bool panels = cache.panels();
  StoreCodes<kCodec>(key, shape.key_dim, shape.block_size, key_scales + offset, [&](int64_t d, uint8_t q) {
    keys[panels ? KeyIndex<kFormat>(depth, offset, d) : offset * shape.key_dim + d] = q;
  });
  StoreCodes<kCodec>(
      value, shape.value_dim, shape.block_size, value_scales + offset, [&](int64_t d, uint8_t q) {
        values[panels ? ValueIndex<kFormat>(shape.block_size, offset, d) : offset * shape.value_dim + d] = q;
      });
}

// Gathers keys (may be null) and values of `num_keys` positions from `begin` into panels of kAttentionChunk
// keys. What follows the last key and the last channel, up to a tile's end, is zero.
template <PanelFormat kFormat, KvCodec kCodec>
void Gather(const CpuKvCache& cache, const AttentionParams& p, const AttentionSequence& sequence, int head,
            int64_t begin, int num_keys, void* keys_out, void* values_out) {
  using T = Element<kFormat>;
  using Held = std::conditional_t<kCodec != KvCodec::kNone, uint8_t, T>;
  const KvCacheShape& s = cache.shape();
  const int64_t depth = cache.key_depth();
  const int value_dim = p.latent_value_dim > 0 ? p.latent_value_dim : s.value_dim;
  auto* keys = static_cast<T*>(keys_out);
  auto* values = static_cast<T*>(values_out);
  for (int64_t j = 0; j < RoundUp(num_keys, kValueTile); ++j) {
    const Held* from_keys = nullptr;
    const Held* from_values = nullptr;
    const uint16_t* key_scales = nullptr;
    const uint16_t* value_scales = nullptr;
    const int64_t offset = (begin + j) % s.block_size;
    if (j < num_keys) {
      const int64_t block = sequence.block_table[(begin + j) / s.block_size];
      from_keys = reinterpret_cast<const Held*>(cache.Keys(block, p.layer, head));
      from_values = reinterpret_cast<const Held*>(cache.Values(block, p.layer, head));
      key_scales = cache.KeyScales(block, p.layer, head);
      value_scales = cache.ValueScales(block, p.layer, head);
    }
    const auto read = [&](Held held, const uint16_t* scales, int64_t d) {
      if constexpr (kCodec != KvCodec::kNone) {
        return Rounded<kFormat>(KvNumber<kCodec>(held) *
                                FloatFromBf16(scales[d / kKvGroup * s.block_size + offset]));
      } else {
        return held;
      }
    };
    const auto key = [&](int64_t d) {
      if (from_keys == nullptr || d >= s.key_dim) return T{0};
      const int64_t at = cache.panels() ? KeyIndex<kFormat>(depth, offset, d) : offset * s.key_dim + d;
      return read(from_keys[at], key_scales, d);
    };
    const auto value = [&](int64_t d) {
      if (from_values == nullptr) return T{0};
      const int64_t at =
          cache.panels() ? ValueIndex<kFormat>(s.block_size, offset, d) : offset * s.value_dim + d;
      return read(from_values[at], value_scales, d);
    };
    if (keys != nullptr) {
      for (int64_t d = 0; d < depth; ++d) keys[KeyIndex<kFormat>(depth, j, d)] = key(d);
    }
    for (int64_t d = 0; d < value_dim; ++d) {
      values[ValueIndex<kFormat>(kAttentionChunk, j, d)] = p.latent_value_dim > 0 ? key(d) : value(d);
    }
  }
}

}  // namespace

KvFormat KvFormat::Of(KvType type, PanelFormat products) {
  const bool pairs = products == PanelFormat::kBf16Pairs;
  switch (type) {
    case KvType::kAuto:
    case KvType::kF32:
      break;
    case KvType::kBf16:
      return {pairs ? PanelFormat::kBf16Pairs : PanelFormat::kBf16};
    case KvType::kInt8:
    case KvType::kFp8:
      return {pairs ? PanelFormat::kBf16Pairs : PanelFormat::kF32, CodecOf(type)};
  }
  return {PanelFormat::kF32};
}

int64_t CpuKvCache::KeyDepth(const KvCacheShape& s, PanelFormat format) {
  return format == PanelFormat::kBf16Pairs ? RoundUp(s.key_dim, kPairDepth) : s.key_dim;
}

int64_t CpuKvCache::BlockBytes(const KvCacheShape& s, KvFormat format) {
  const int64_t elements =
      int64_t{s.block_size} * (KeyDepth(s, format.panels) + int64_t{ValuePanels(s.value_dim)} * kPanel);
  const int64_t scales =
      format.coded() ? s.block_size * (NumKvGroups(s.key_dim) + NumKvGroups(s.value_dim)) : 0;
  return int64_t{s.num_layers} * s.num_kv_heads *
         (RoundUp(elements * format.held_bytes(), sizeof(uint16_t)) +
          scales * static_cast<int64_t>(sizeof(uint16_t)));
}

absl::StatusOr<std::unique_ptr<CpuKvCache>> CpuKvCache::Create(const KvCacheShape& shape, int64_t num_blocks,
                                                               KvFormat format) {
  std::unique_ptr<CpuKvCache> cache(new CpuKvCache);
  cache->shape_ = shape;
  cache->num_blocks_ = num_blocks;
  cache->format_ = format;
  cache->head_bytes_ = BlockBytes({1, 1, shape.key_dim, shape.value_dim, shape.block_size}, format);
  PHX_ASSIGN_OR_RETURN(cache->memory_, HostBuffer::Create(BlockBytes(shape, format) * num_blocks));
  return cache;
}

const char* CpuKvCache::Keys(int64_t block, int layer, int head) const {
  return static_cast<const char*>(memory_->data()) +
         ((block * shape_.num_layers + layer) * shape_.num_kv_heads + head) * head_bytes_;
}

const char* CpuKvCache::Values(int64_t block, int layer, int head) const {
  return Keys(block, layer, head) + shape_.block_size * key_depth() * format_.held_bytes();
}

const uint16_t* CpuKvCache::KeyScales(int64_t block, int layer, int head) const {
  return ValueScales(block, layer, head) - shape_.block_size * NumKvGroups(shape_.key_dim);
}

const uint16_t* CpuKvCache::ValueScales(int64_t block, int layer, int head) const {
  return reinterpret_cast<const uint16_t*>(Keys(block, layer, head) + head_bytes_) -
         shape_.block_size * NumKvGroups(shape_.value_dim);
}

void CpuKvCache::Store(int64_t slot, int layer, int head, const float* key, const float* value) {
  const int64_t block = slot / shape_.block_size;
  char* keys = const_cast<char*>(Keys(block, layer, head));
  char* values = const_cast<char*>(Values(block, layer, head));
  const int64_t offset = slot % shape_.block_size;
  WithFormat(format_.panels, [&](auto format) {
    WithCodec(format_.codec, [&](auto codec) {
      constexpr PanelFormat kFormat = decltype(format)::value;
      constexpr KvCodec kCodec = decltype(codec)::value;
      if constexpr (kCodec == KvCodec::kNone) {
        StorePosition<kFormat>(*this, offset, key, value, keys, values);
      } else {
        StoreCodedPosition<kFormat, kCodec>(*this, offset, key, value, reinterpret_cast<uint8_t*>(keys),
                                            reinterpret_cast<uint8_t*>(values),
                                            const_cast<uint16_t*>(KeyScales(block, layer, head)),
                                            const_cast<uint16_t*>(ValueScales(block, layer, head)));
      }
    });
  });
}

// Offsets in a thread's scratch.
struct CpuAttention::Layout {
  Layout(const AttentionParams& p, const CpuKvCache& cache, int max_vectors) {
    const KvCacheShape& s = cache.shape();
    const bool pairs = cache.format().panels == PanelFormat::kBf16Pairs;
    const int value_dim = p.latent_value_dim > 0 ? p.latent_value_dim : s.value_dim;
    const int64_t value_width = int64_t{ValuePanels(value_dim)} * kPanel;
    const int64_t vectors = RoundUp(max_vectors, kPairTileRows);
    coded = cache.format().coded() && s.block_size >= (pairs ? kValueTile : kPanel);
    const bool gather_keys = !cache.panels() || (cache.format().coded() && !coded);
    const bool gather_values = gather_keys || p.latent_value_dim > 0 || (pairs && s.block_size < kValueTile);
    const auto take = [this](int64_t size) {
      const int64_t at = bytes;
      bytes += RoundUp(size, 64);
      return at;
    };
    plain_q = take(vectors * s.key_dim * 4);
    q = take(vectors * RoundUp(s.key_dim, kPairDepth) * 4);
    scores = take(vectors * kScoreStride * 4);
    weights = take(vectors * kAttentionChunk * 4);
    partial = take(vectors * value_width * 4);
    out = take(vectors * value_width * 4);
    max = take(vectors * 4);
    sum = take(vectors * 4);
    num_keys = take(vectors * 4);
    key_pointers = take(2 * kAttentionChunk / kPanel * 8);
    value_pointers = take(kAttentionChunk / kPanel * 8);
    value_strides = take(kAttentionChunk / kPanel * 8);
    last_tile = take(kValueTile * value_width * 2);
    if (coded) {
      key_scales = take(2 * kAttentionChunk / kPanel * 8);
      value_scales = take(kAttentionChunk / kPanel * 8);
      widened = take(pairs ? 2 * kPanel * std::max<int64_t>(cache.key_depth(), kAttentionChunk) * 2
                           : s.block_size * std::max<int64_t>(s.key_dim, value_width) * 4);
    }
    if (gather_keys) keys = take(kAttentionChunk * cache.key_depth() * cache.format().panel_bytes());
    if (gather_values) values = take(kAttentionChunk * value_width * cache.format().panel_bytes());
  }
  int64_t bytes = 0;
  int64_t plain_q, q, scores, weights, partial, out, max, sum, num_keys;
  int64_t key_pointers, value_pointers, value_strides, last_tile;
  int64_t keys = -1, values = -1;  // -1: read where they lie
  bool coded = false;              // and that is codes, then:
  int64_t key_scales = 0, value_scales = 0, widened = 0;
};

struct CpuAttention::Work {
  const GemmKernels& products;
  const AttentionParams& params;
  const CpuKvCache& cache;
  const Task& task;
  const Layout& layout;
  char* scratch;

  template <typename T>
  T* At(int64_t offset) const {
    return reinterpret_cast<T*>(scratch + offset);
  }
  int head() const { return params.kv_head_of[task.first_head]; }
  // Gathered keys and values of a chunk, where the layout wants them.
  void GatherChunk(int64_t begin, int keys) const {
    if (layout.values < 0) return;
    char* keys_to = layout.keys >= 0 ? scratch + layout.keys : nullptr;
    char* values_to = scratch + layout.values;
    WithFormat(cache.format().panels, [&](auto format) {
      WithCodec(cache.format().codec, [&](auto codec) {
        Gather<decltype(format)::value, decltype(codec)::value>(cache, params, *task.sequence, head(), begin,
                                                                keys, keys_to, values_to);
      });
    });
  }
  int64_t EndPosition() const { return task.sequence->first_position + task.first_row + task.num_rows; }
  int64_t Block(int64_t position) const {
    return task.sequence->block_table[position / cache.shape().block_size];
  }
};

absl::Status CpuAttention::Run(const AttentionParams& p, const CpuKvCache& cache) {
  // Runs of heads that share a KV head, and rows enough to fill a task.
  tasks_.clear();
  int max_vectors = 1;
  const auto heads_end = [&p](int h) {
    int end = h + 1;
    while (end < p.num_heads && end - h < kMaxHeads && p.kv_head_of[end] == p.kv_head_of[h]) ++end;
    return end;
  };
  int most_heads = 1;
  for (int h = 0; h < p.num_heads; h = heads_end(h)) most_heads = std::max(most_heads, heads_end(h) - h);
  // A power of two of rows, cut where positions are multiples of it: so no task straddles two chunks. All
  // heads of some rows follow one another: threads find rows where the products left them.
  int rows = 1;
  while (rows * 2 * most_heads <= kMaxVectors) rows *= 2;
  for (const AttentionSequence& sequence : p.sequences) {
    for (int64_t row = 0; row < sequence.num_rows;) {
      const int64_t position = sequence.first_position + row;
      const int64_t last = std::min(sequence.num_rows, row + rows - position % rows);
      for (int h = 0; h < p.num_heads; h = heads_end(h)) {
        const int heads = heads_end(h) - h;
        tasks_.push_back({&sequence, row, static_cast<int>(last - row), h, heads});
        max_vectors = std::max(max_vectors, static_cast<int>(last - row) * heads);
      }
      row = last;
    }
  }
  const Layout layout(p, cache, max_vectors);
  for (Scratch& s : scratch_) PHX_RETURN_IF_ERROR(s.Get(layout.bytes).status());
  pool_.Run(static_cast<int64_t>(tasks_.size()), [&](int64_t task, int thread) {
    auto* scratch = static_cast<char*>(*scratch_[static_cast<size_t>(thread)].Get(0));
    RunTask({products_, p, cache, tasks_[static_cast<size_t>(task)], layout, scratch});
  });
  return absl::OkStatus();
}

void CpuAttention::RunTask(const Work& work) {
  const AttentionParams& p = work.params;
  const KvCacheShape& s = work.cache.shape();
  const Task& task = work.task;
  const bool pairs = work.cache.format().panels == PanelFormat::kBf16Pairs;
  const int value_dim = p.latent_value_dim > 0 ? p.latent_value_dim : s.value_dim;
  const int num_vectors = task.num_rows * task.num_heads;
  // Vector v is row v / heads, head v % heads.
  const auto row_of = [&](const Matrix& m, int v, int64_t width) {
    return static_cast<float*>(m.data) +
           (task.sequence->first_row + task.first_row + v / task.num_heads) * m.stride +
           (task.first_head + v % task.num_heads) * width;
  };
  const int64_t depth = RoundUp(s.key_dim, pairs ? kPairDepth : kAvx2GemmF32.k_unit);
  float* plain = work.At<float>(work.layout.plain_q);
  for (int v = 0; v < num_vectors; ++v)
    std::copy_n(row_of(p.q, v, s.key_dim), s.key_dim, plain + v * s.key_dim);
  const int most_rows = pairs ? kPairTileRows : kAvx2GemmF32.max_tile_rows;
  const int tiles = NumTiles(num_vectors, most_rows);
  for (int t = 0; t < tiles; ++t) {
    const int begin = TileBegin(num_vectors, tiles, most_rows, !pairs, t);
    const int rows = TileBegin(num_vectors, tiles, most_rows, !pairs, t + 1) - begin;
    const float* from = plain + begin * s.key_dim;
    char* to = work.scratch + work.layout.q + begin * depth * (pairs ? 2 : 4);
    if (pairs) {
      Avx512PackRowsBf16(from, s.key_dim, rows, tiles == 1 ? rows : most_rows, s.key_dim, to, 0);
    } else {
      Avx2PackRows(from, s.key_dim, rows, rows, s.key_dim, to, 0);
    }
  }

  int* num_keys = work.At<int>(work.layout.num_keys);
  AttentionVectors v;
  v.num_vectors = num_vectors;
  v.q = work.scratch + work.layout.q;
  v.key_depth = depth;
  v.value_panels = ValuePanels(value_dim);
  v.num_keys = num_keys;
  v.scale = p.scale;
  v.scores = work.At<float>(work.layout.scores);
  v.weights = work.scratch + work.layout.weights;
  v.partial = work.At<float>(work.layout.partial);
  v.max = work.At<float>(work.layout.max);
  v.sum = work.At<float>(work.layout.sum);
  v.out = work.At<float>(work.layout.out);

  const GemmKernels& unit = work.products;
  if (pairs && unit.begin_task != nullptr) unit.begin_task(num_vectors);
  const int64_t first_position = task.sequence->first_position + task.first_row;
  const int64_t last_position = first_position + task.num_rows - 1;
  for (int64_t begin = 0; begin <= last_position; begin += kAttentionChunk) {
    const auto keys = static_cast<int>(std::min<int64_t>(kAttentionChunk, last_position + 1 - begin));
    for (int i = 0; i < num_vectors; ++i) {
      num_keys[i] = static_cast<int>(
          std::min<int64_t>(kAttentionChunk, first_position + i / task.num_heads + 1 - begin));
    }
    v.first = begin == 0;
    work.GatherChunk(begin, keys);
    pairs ? RunPairChunk(work, v, begin, keys) : RunAvx2Chunk(work, v, begin, keys);
  }
  if (pairs && unit.end_task != nullptr) unit.end_task();
  for (int i = 0; i < num_vectors; ++i) {
    Avx2Divide(v.out + int64_t{i} * v.value_panels * kPanel, v.sum[i], value_dim,
               row_of(p.out, i, value_dim));
  }
}

void CpuAttention::RunAvx2Chunk(const Work& work, const AttentionVectors& vectors, int64_t begin,
                                int num_keys) {
  const CpuKvCache& cache = work.cache;
  const Layout& layout = work.layout;
  const auto** keys = work.At<const void*>(layout.key_pointers);
  const auto** values = work.At<const void*>(layout.value_pointers);
  Avx2AttentionChunkParams c;
  c.v = vectors;
  c.bf16 = cache.format().panels == PanelFormat::kBf16;
  c.codec = layout.coded ? cache.format().codec : KvCodec::kNone;
  const auto** key_scales = work.At<const uint16_t*>(layout.key_scales);
  const auto** value_scales = work.At<const uint16_t*>(layout.value_scales);
  c.scales = {key_scales, value_scales, cache.shape().block_size, work.scratch + layout.widened};
  c.key_dim = cache.shape().key_dim;
  // Latent values of a panel cache: keys are read where they lie, values from the gathered panels, cut alike.
  const bool in_place = layout.keys < 0;
  c.block_keys = in_place ? cache.shape().block_size : kAttentionChunk;
  c.value_rows = layout.values >= 0 ? kAttentionChunk : c.block_keys;
  c.keys = keys;
  c.values = values;
  for (int b = 0; b * c.block_keys < num_keys; ++b) {
    const int64_t block = in_place ? work.Block(begin + int64_t{b} * c.block_keys) : 0;
    keys[b] = in_place ? cache.Keys(block, work.params.layer, work.head()) : work.scratch + layout.keys;
    values[b] = layout.values >= 0 ? work.scratch + layout.values +
                                         int64_t{b} * c.block_keys * kPanel * cache.format().panel_bytes()
                                   : cache.Values(block, work.params.layer, work.head());
    if (!layout.coded) continue;
    key_scales[b] = cache.KeyScales(block, work.params.layer, work.head());
    value_scales[b] = cache.ValueScales(block, work.params.layer, work.head());
  }
  c.next_blocks = 0;
  for (int64_t position = begin + kAttentionChunk;
       layout.coded && position < std::min(work.EndPosition(), begin + 2 * kAttentionChunk);
       position += c.block_keys) {
    keys[kAttentionChunk / kPanel + c.next_blocks++] =
        cache.Keys(work.Block(position), work.params.layer, work.head());
  }
  Avx2AttentionChunk(c);
}

void CpuAttention::RunPairChunk(const Work& work, const AttentionVectors& vectors, int64_t begin,
                                int num_keys) {
  const CpuKvCache& cache = work.cache;
  const Layout& layout = work.layout;
  const int64_t block_size = cache.shape().block_size;
  const auto** keys = work.At<const void*>(layout.key_pointers);
  const auto** values = work.At<const void*>(layout.value_pointers);
  const auto** key_scales = work.At<const uint16_t*>(layout.key_scales);
  const auto** value_scales = work.At<const uint16_t*>(layout.value_scales);
  const int64_t bytes = layout.coded ? 1 : cache.format().panel_bytes();
  auto* strides = work.At<int64_t>(layout.value_strides);
  for (int p = 0; p * kPanel < num_keys; ++p) {
    const int64_t position = begin + p * kPanel;
    const char* first = work.scratch + layout.keys;
    int64_t offset = p * kPanel;
    if (layout.keys < 0) {
      first = cache.Keys(work.Block(position), work.params.layer, work.head());
      offset = position % block_size;
    }
    keys[p] = first + offset * cache.key_depth() * bytes;
    if (layout.coded) {
      key_scales[p] = cache.KeyScales(work.Block(position), work.params.layer, work.head()) + offset;
    }
  }
  const int64_t next = begin + kAttentionChunk;
  int next_panels = 0;
  for (; layout.coded && next_panels < kAttentionChunk / kPanel; ++next_panels) {
    const int64_t position = next + next_panels * kPanel;
    if (position >= work.EndPosition()) break;
    const int64_t offset = position % block_size;
    const int at = kAttentionChunk / kPanel + next_panels;
    keys[at] =
        cache.Keys(work.Block(position), work.params.layer, work.head()) + offset * cache.key_depth() * bytes;
    key_scales[at] = cache.KeyScales(work.Block(position), work.params.layer, work.head()) + offset;
  }
  for (int t = 0; t * kValueTile < num_keys; ++t) {
    const int64_t position = begin + t * kValueTile;
    if (layout.values >= 0) {
      values[t] = work.At<uint16_t>(layout.values) + t * kValueTile * kPanel;
      strides[t] = int64_t{kAttentionChunk} * kPanel;
      continue;
    }
    const char* first = cache.Values(work.Block(position), work.params.layer, work.head());
    const auto* here = first + position % block_size * kPanel * bytes;
    values[t] = here;
    strides[t] = block_size * kPanel;
    if (layout.coded) {
      value_scales[t] =
          cache.ValueScales(work.Block(position), work.params.layer, work.head()) + position % block_size;
      continue;
    }
    const int present = num_keys - t * kValueTile;
    if (present >= kValueTile) continue;
    // The last tile has keys that nobody sees, which may hold anything: they are replaced by zeros.
    auto* copy = work.At<uint16_t>(layout.last_tile);
    for (int p = 0; p < vectors.value_panels; ++p) {
      uint16_t* to = copy + p * kValueTile * kPanel;
      std::memcpy(to, here + p * strides[t] * bytes, static_cast<size_t>((present + 1) / 2 * 2 * kPanel) * 2);
      std::memset(to + (present + 1) / 2 * 2 * kPanel, 0,
                  static_cast<size_t>((kValueTile - (present + 1) / 2 * 2) * kPanel) * 2);
      if (present % 2 == 0) continue;
      for (int c = 0; c < kPanel; ++c) to[present / 2 * 2 * kPanel + 2 * c + 1] = 0;
    }
    values[t] = copy;
    strides[t] = kValueTile * kPanel;
  }
  work.products.attention_chunk({vectors,
                                 keys,
                                 values,
                                 strides,
                                 layout.coded ? cache.format().codec : KvCodec::kNone,
                                 next_panels,
                                 {key_scales, value_scales, block_size, work.scratch + layout.widened}});
}

}  // namespace phalanx
