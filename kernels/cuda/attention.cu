// Causal attention over the paged cache, for prefill and decode in one arithmetic.
//
// Arithmetic. Keys come in chunks of 256, aligned at position 0. Scores are m16n8k16 over rising channels,
// times scale * log2(e); a row's chunk has its own maximum m, probabilities 2^(score - m) and their fp32 sum
// (a thread's keys in rising order, then the 4 threads of a row as a tree, then the warps in order); outputs
// are m16n8k16 over all keys of the chunk in rising order, from zero, with probabilities rounded to 16 bits.
// Chunks of a row are folded left to right by Fold below. A masked key has probability 0 and adds +0, so
// neither rows beside a row nor keys beyond its position change its bits, and it does not matter whether one
// block takes all chunks of a row (prefill) or one each (decode, whose partials LaunchAttentionCombine
// folds).
//
// A block: 8 warps, 16 or 64 packed rows (tokens x query heads of one KV head, so that decode of a group
// shares each key's load). In scores, warps share out the keys of a stage, in outputs the channels (MLA: half
// of them make scores): every fragment of K and V is read from shared memory by one warp once. Stages of 64
// (MLA: 32) keys of K, then V, come by cp.async (a quantised cache: through registers) through one ring that
// runs on over chunks; rows are swizzled, free of bank conflicts for ldmatrix and the copies. Roofline:
// decode reads (key
// + value width) * 2 bytes per key and KV head once for all its heads; prefill is bound by the tensor cores'
// rate for mma.sync.
#include "kernels/cuda/device.h"
#include "kernels/cuda/kernels.h"
#include "kernels/cuda/rows.cuh"
#include "kernels/fp8.h"

namespace phalanx::cuda {
namespace {

constexpr int kChunk = 256;
constexpr int kCombineThreads = 128;
constexpr float kLog2e = 1.44269504f;

template <int kRowTiles_, int kKeyDim_, int kValueDim_, int kStageKeys_, int kSlots_, int kWarps_>
struct AttentionShape {
  static constexpr int kWarps = kWarps_;
  static constexpr int kThreads = kWarps * kWarpSize;
  static constexpr int kRowTiles = kRowTiles_;
  static constexpr int kKeyDim = kKeyDim_;  // multiples of 64
  static constexpr int kValueDim = kValueDim_;
  static constexpr int kStageKeys = kStageKeys_;
  static constexpr int kSlots = kSlots_;
  static constexpr int kRows = kRowTiles * 16;
  static constexpr int kStages = kChunk / kStageKeys;
  static constexpr int kScoreWarps = kStageKeys / 8;  // each makes scores of 8 keys of a stage
  static_assert(kScoreWarps <= kWarps);
  static constexpr int kValueTiles = kValueDim / kWarps / 8;  // of a warp
  static constexpr int kWidest = kKeyDim > kValueDim ? kKeyDim : kValueDim;
  static constexpr int kSlotBytes = kStageKeys * kWidest * 2;
  static constexpr int kQueryBytes = kRows * kKeyDim * 2;
  static constexpr int kWeightBytes = kRows * kChunk * 2;
  static constexpr int kStatBytes = 2 * kScoreWarps * kRows * 4;
  static constexpr int kSharedBytes = kQueryBytes + kWeightBytes + kSlots * kSlotBytes + kStatBytes;
  // Of few rows, a multiprocessor takes two blocks where its shared memory does.
  static constexpr int kBlocks = kRowTiles == 1 && kSharedBytes <= 113 * 1024 ? 2 : 1;
};

// One channel of one row: (max, sum, out) folded with those of the next chunk.
struct FoldFactors {
  float old_factor, chunk_factor, max;
};
PHX_DEVICE FoldFactors FactorsOf(float max, float chunk_max) {
  const float new_max = Max(max, chunk_max);
  return {Exp2(Sub(max, new_max)), Exp2(Sub(chunk_max, new_max)), new_max};
}
PHX_DEVICE float Fold(float a, float chunk, const FoldFactors& f) {
  return Add(Mul(a, f.old_factor), Mul(chunk, f.chunk_factor));
}

// 8 channels of a quantised cache (kernels/quantised_kv.h), rounded to 16 bits.
struct alignas(8) KvCodes {
  uint32_t v[2];
};
template <bool kHalf>
PHX_DEVICE Quad Int8Unit(const KvCodes& words, uint16_t scale) {
  const float factor = ToFloat<false>(scale);
  Quad q;
  PHX_UNROLL
  for (int i = 0; i < 4; ++i) {
    float v[2];
    PHX_UNROLL
    for (int e = 0; e < 2; ++e) {
      // The code as a number of 0 to 255, in the low bits of 2^23.
      const uint32_t code = (words.v[i / 2] >> (i % 2 * 16 + e * 8) & 0xffu) ^ 0x80u;
      v[e] = Mul(Sub(FloatFromBits(0x4b000000u | code), 8388608.0f + 128.0f), factor);
    }
    q.v[i] = kHalf ? Pack2Finite(v[0], v[1]) : Pack2<false>(v[0], v[1]);
  }
  return q;
}
template <bool kHalf>
PHX_DEVICE Quad E4m3Unit(const KvCodes& words, uint16_t scale) {
  Quad q;
  PHX_UNROLL
  for (int i = 0; i < 4; ++i) {
    const uint32_t codes = words.v[i / 2] >> (i % 2 * 16);  // two, in the low half
    if constexpr (kHalf) {
      float v[2];
      PHX_UNROLL
      for (int e = 0; e < 2; ++e) {
        const float number = Mul(FloatFromBits(E4m3TinyBits(codes >> (8 * e))), FloatFromBits(kE4m3FromTiny));
        v[e] = Mul(number, ToFloat<false>(scale));
      }
      q.v[i] = Pack2Finite(v[0], v[1]);
    } else {
      // In bf16's places a code is its number times 2^-120; only the scale's product is rounded.
      constexpr uint32_t kFromTiny = 0x7b807b80u, kNothing = 0x80008000u;
      const uint32_t apart = (codes & 0xffu) | (codes & 0xff00u) << 8;
      const uint32_t tiny = (apart & 0x007f007fu) << 4 | (apart & 0x00800080u) << 8;
      q.v[i] = Fma2<false>(Fma2<false>(tiny, kFromTiny, kNothing), scale * 0x10001u, kNothing);
    }
  }
  return q;
}

template <class Shape, bool kHalf>
struct Attender {
  const AttentionArgs& p;
  const AttentionItem item;
  int last_limit;  // keys that the item's last row sees

  PHX_DEVICE char* queries() const { return SharedMemory(); }
  PHX_DEVICE char* weights() const { return SharedMemory() + Shape::kQueryBytes; }
  PHX_DEVICE char* slot(int i) const {
    return SharedMemory() + Shape::kQueryBytes + Shape::kWeightBytes + i * Shape::kSlotBytes;
  }
  PHX_DEVICE float* maxima() const {
    return reinterpret_cast<float*>(SharedMemory() + Shape::kSharedBytes - Shape::kStatBytes);
  }
  PHX_DEVICE float* sums() const { return maxima() + Shape::kScoreWarps * Shape::kRows; }

  PHX_DEVICE int Limit(int row) const {
    return item.first_position + (item.first_row + (row < item.rows ? row : item.rows - 1)) / item.heads + 1;
  }
  PHX_DEVICE int Stages(int chunk) const {
    const int keys = last_limit - chunk * kChunk;
    return keys >= kChunk ? Shape::kStages : (keys + Shape::kStageKeys - 1) / Shape::kStageKeys;
  }

  // ---- Loads ----
  int load_chunk, load_stage = 0, load_slot = 0;
  bool load_values = false;

  PHX_DEVICE void LoadQueries() {
    constexpr int kUnits = Shape::kKeyDim / 8;
    for (int i = ThreadIndex(); i < Shape::kRows * kUnits; i += Shape::kThreads) {
      const int row = i / kUnits, unit = i % kUnits;
      Quad q = {{0, 0, 0, 0}};
      if (row < item.rows && unit * 8 < p.cache.key_dim) {
        const int packed = item.first_row + row;
        const int64_t token = int64_t{item.first_token} + packed / item.heads;
        const int head = p.head_list[item.first_head + packed % item.heads];
        q = LoadBits8(p.q + token * p.q_stride + int64_t{head} * p.cache.key_dim + unit * 8,
                      p.cache.key_dim - unit * 8);
      }
      StoreQuad(queries() + Swizzled(row, unit, Shape::kKeyDim * 2), q);
    }
  }

  template <int kDim>
  PHX_DEVICE void LoadStage(const uint16_t* base, const uint16_t* scales, int dim, int pitch) {
    constexpr int kUnits = kDim / 8;
    const int groups = (dim + kKvGroup - 1) / kKvGroup;
    char* to = slot(load_slot);
    const int first = load_chunk * kChunk + load_stage * Shape::kStageKeys;
    PHX_UNROLL_BY(4)
    for (int i = 0; i < Shape::kStageKeys * kUnits / Shape::kThreads; ++i) {
      const int at = ThreadIndex() + i * Shape::kThreads;
      const int key = at / kUnits, unit = at % kUnits;
      const int position = first + key;
      bool inside = position < last_limit && unit * 8 < pitch;
      int block = 0;
      if (inside) {
        int page = position >> p.cache.block_shift;
        if (PHX_FAULT(kAttentionWrongPage)) page = page > 0 ? page - 1 : page;
        block = item.block_table[page];
        inside = block >= 0 && block < p.cache.num_blocks;
      }
      const int offset = position & ((1 << p.cache.block_shift) - 1);
      const int64_t row = ((static_cast<int64_t>(inside ? block : 0) * p.cache.num_heads + item.kv_head)
                           << p.cache.block_shift) +
                          offset;
      if (p.cache.codec != KvCodec::kNone) {
        Quad q = {{0, 0, 0, 0}};
        if (inside) {
          const KvCodes codes =
              *reinterpret_cast<const KvCodes*>(reinterpret_cast<const char*>(base) + row * pitch + unit * 8);
          const uint16_t scale = scales[row * groups + unit / (kKvGroup / 8)];
          q = p.cache.codec == KvCodec::kE4m3 ? E4m3Unit<kHalf>(codes, scale) : Int8Unit<kHalf>(codes, scale);
        }
        StoreQuad(to + Swizzled(key, unit, kDim * 2), q);
        continue;
      }
      CopyAsync(to + Swizzled(key, unit, kDim * 2), base + (inside ? row * pitch + unit * 8 : 0),
                inside ? 16 : 0);
    }
  }
  // The next stage of the sequence: keys of a chunk, its values, the next chunk. A latent's values are the
  // first channels of its keys.
  PHX_DEVICE void LoadNext() {
    if (load_chunk < item.end_chunk) {
      const bool from_values = load_values && !p.latent;
      const uint16_t* base = from_values ? p.cache.values : p.cache.keys;
      const uint16_t* scales = from_values ? p.cache.value_scales : p.cache.key_scales;
      const int dim = from_values ? p.cache.value_dim : p.cache.key_dim;
      const int pitch = from_values ? p.cache.value_pitch : p.cache.key_pitch;
      if (Shape::kKeyDim != Shape::kValueDim && load_values) {
        LoadStage<Shape::kValueDim>(base, scales, dim, pitch);
      } else {
        LoadStage<Shape::kKeyDim>(base, scales, dim, pitch);
      }
      load_slot = load_slot == Shape::kSlots - 1 ? 0 : load_slot + 1;
      if (++load_stage == Stages(load_chunk)) {
        load_stage = 0;
        if (load_values) ++load_chunk;
        load_values = !load_values;
      }
    }
    CommitCopies();
  }
  int read_slot = 0;
  // Makes the next stage readable, and the one before it free to be filled.
  PHX_DEVICE const char* NextStage() {
    if (!PHX_FAULT(kAttentionNoWait)) WaitCopies<Shape::kSlots - 2>();
    SyncThreads();
    LoadNext();
    const char* stage = slot(read_slot);
    read_slot = read_slot == Shape::kSlots - 1 ? 0 : read_slot + 1;
    return stage;
  }

  // ---- One chunk ----
  // s += q k of this warp's keys of the stage.
  PHX_DEVICE void Scores(const char* stage, float (&s)[Shape::kRowTiles][4]) const {
    const int lane = ThreadIndex() % kWarpSize, warp = ThreadIndex() / kWarpSize;
    constexpr int kBytes = Shape::kKeyDim * 2;
    PHX_UNROLL_BY(2)
    for (int k = 0; k < Shape::kKeyDim / 16; k += 2) {
      uint32_t b[4];  // of two steps
      LdMatrix(b, stage + Swizzled(warp * 8 + lane % 8, k * 2 + lane / 8, kBytes));
      PHX_UNROLL
      for (int r = 0; r < Shape::kRowTiles; ++r) {
        uint32_t a[4];
        LdMatrix(a, queries() + Swizzled(r * 16 + lane % 16, 2 * k + lane / 16, kBytes));
        Mma<kHalf>(s[r], a, b[0], b[1]);
        LdMatrix(a, queries() + Swizzled(r * 16 + lane % 16, 2 * k + 2 + lane / 16, kBytes));
        Mma<kHalf>(s[r], a, b[2], b[3]);
      }
    }
  }

  // o += weights v of all keys of the stage, this warp's channels.
  PHX_DEVICE void Outputs(const char* stage, int first_key,
                          float (&o)[Shape::kRowTiles][Shape::kValueTiles][4]) const {
    const int lane = ThreadIndex() % kWarpSize, warp = ThreadIndex() / kWarpSize;
    PHX_UNROLL
    for (int k = 0; k < Shape::kStageKeys / 16; k += 2) {
      uint32_t a[2][Shape::kRowTiles][4];
      PHX_UNROLL
      for (int r = 0; r < Shape::kRowTiles; ++r) {
        PHX_UNROLL
        for (int step = 0; step < 2; ++step) {
          LdMatrix(a[step][r], weights() + Swizzled(r * 16 + lane % 16,
                                                    first_key / 8 + (k + step) * 2 + lane / 16, kChunk * 2));
        }
      }
      PHX_UNROLL
      for (int j = 0; j < Shape::kValueTiles; ++j) {
        uint32_t b[4];  // of two steps
        LdMatrixTrans(b,
                      stage + Swizzled(k * 16 + lane, warp * Shape::kValueTiles + j, Shape::kValueDim * 2));
        PHX_UNROLL
        for (int r = 0; r < Shape::kRowTiles; ++r) {
          Mma<kHalf>(o[r][j], a[0][r], b[0], b[1]);
          Mma<kHalf>(o[r][j], a[1][r], b[2], b[3]);
        }
      }
    }
  }

  // Rows of a lane: r * 16 + lane / 4 + h * 8.
  PHX_DEVICE void Chunk(int chunk, float (&o)[Shape::kRowTiles][Shape::kValueTiles][4],
                        float (&max)[Shape::kRowTiles][2], float (&sum)[Shape::kRowTiles][2]) {
    const int lane = ThreadIndex() % kWarpSize, warp = ThreadIndex() / kWarpSize;
    const int stages = Stages(chunk);
    const bool scores = Shape::kScoreWarps == Shape::kWarps || warp < Shape::kScoreWarps;
    const float scale = p.scale * kLog2e;
    float s[Shape::kStages][Shape::kRowTiles][4];
    PHX_UNROLL
    for (int r = 0; r < Shape::kRowTiles; ++r) max[r][0] = max[r][1] = -Infinity();
    int limit[Shape::kRowTiles][2];  // keys of this chunk that the row sees
    PHX_UNROLL
    for (int r = 0; r < Shape::kRowTiles; ++r) {
      PHX_UNROLL
      for (int h = 0; h < 2; ++h) {
        const int keys = Limit(r * 16 + lane / 4 + h * 8) - chunk * kChunk;
        limit[r][h] = keys > kChunk ? kChunk : keys;
        if (PHX_FAULT(kAttentionMaskOffByOne)) ++limit[r][h];
      }
    }
    PHX_UNROLL
    for (int t = 0; t < Shape::kStages; ++t) {
      PHX_UNROLL
      for (int r = 0; r < Shape::kRowTiles; ++r) {
        PHX_UNROLL
        for (int i = 0; i < 4; ++i) s[t][r][i] = 0;
      }
      if (t < stages) {
        const char* stage = NextStage();
        if (scores) Scores(stage, s[t]);
      }
      PHX_UNROLL
      for (int r = 0; r < Shape::kRowTiles; ++r) {
        PHX_UNROLL
        for (int i = 0; i < 4; ++i) {
          const int key = t * Shape::kStageKeys + warp * 8 + lane % 4 * 2 + i % 2;
          const bool seen = t < stages && key < limit[r][i / 2];
          s[t][r][i] = seen ? Mul(s[t][r][i], scale) : -Infinity();
          max[r][i / 2] = Max(max[r][i / 2], s[t][r][i]);
        }
      }
    }
    PHX_UNROLL
    for (int r = 0; r < Shape::kRowTiles; ++r) {
      PHX_UNROLL
      for (int h = 0; h < 2; ++h) {
        max[r][h] = Max(max[r][h], ShuffleXor(max[r][h], 1));
        max[r][h] = Max(max[r][h], ShuffleXor(max[r][h], 2));
        if (scores && lane % 4 == 0) maxima()[warp * Shape::kRows + r * 16 + lane / 4 + h * 8] = max[r][h];
      }
    }
    SyncThreads();
    PHX_UNROLL
    for (int r = 0; r < Shape::kRowTiles; ++r) {
      PHX_UNROLL
      for (int h = 0; h < 2; ++h) {
        const int row = r * 16 + lane / 4 + h * 8;
        PHX_UNROLL
        for (int w = 0; w < Shape::kScoreWarps; ++w)
          max[r][h] = Max(max[r][h], maxima()[w * Shape::kRows + row]);
        const float most =
            max[r][h] == -Infinity() ? 0.0f : max[r][h];  // of a row that sees none of the keys
        float part = 0;
        PHX_UNROLL
        for (int t = 0; t < Shape::kStages; ++t) {
          const float low = Exp2(Sub(s[t][r][h * 2], most)), high = Exp2(Sub(s[t][r][h * 2 + 1], most));
          part = Add(Add(part, low), high);
          if (!scores) continue;
          const int key = t * Shape::kStageKeys + warp * 8;
          *reinterpret_cast<uint32_t*>(weights() + Swizzled(row, key / 8, kChunk * 2) + lane % 4 * 4) =
              Pack2<kHalf>(low, high);
        }
        part = Add(part, ShuffleXor(part, 1));
        part = Add(part, ShuffleXor(part, 2));
        if (scores && lane % 4 == 0) sums()[warp * Shape::kRows + row] = part;
      }
    }
    if (!PHX_FAULT(kAttentionNoBarrier)) SyncThreads();
    PHX_UNROLL
    for (int r = 0; r < Shape::kRowTiles; ++r) {
      PHX_UNROLL
      for (int h = 0; h < 2; ++h) {
        const int row = r * 16 + lane / 4 + h * 8;
        sum[r][h] = sums()[row];
        PHX_UNROLL
        for (int w = 1; w < Shape::kScoreWarps; ++w)
          sum[r][h] = Add(sum[r][h], sums()[w * Shape::kRows + row]);
      }
      PHX_UNROLL
      for (int j = 0; j < Shape::kValueTiles; ++j) {
        PHX_UNROLL
        for (int i = 0; i < 4; ++i) o[r][j][i] = 0;
      }
    }
    for (int t = 0; t < stages; ++t) Outputs(NextStage(), t * Shape::kStageKeys, o);
  }

  // body(row, h index, r, channel, j, i pair) for the elements a lane holds of rows of the item.
  template <typename Body>
  PHX_DEVICE void ForRows(Body&& body) const {
    const int lane = ThreadIndex() % kWarpSize;
    PHX_UNROLL
    for (int r = 0; r < Shape::kRowTiles; ++r) {
      PHX_UNROLL
      for (int h = 0; h < 2; ++h) {
        const int row = r * 16 + lane / 4 + h * 8;
        if (row < item.rows) body(row, r, h);
      }
    }
  }
};

// Stores the pair of channels (c, c + 1) of a head.
template <bool kHalf>
PHX_DEVICE void StorePair(uint16_t* to, int channel, int value_dim, float low, float high) {
  if (channel + 1 < value_dim && (reinterpret_cast<uintptr_t>(to + channel) & 3) == 0) {
    *reinterpret_cast<uint32_t*>(to + channel) = Pack2<kHalf>(low, high);
    return;
  }
  if (channel < value_dim) to[channel] = FromFloat<kHalf>(low);
  if (channel + 1 < value_dim) to[channel + 1] = FromFloat<kHalf>(high);
}

// One item: queries, all its keys and values, outputs or partials.
template <class Shape, bool kHalf>
PHX_DEVICE void Attend(const AttentionArgs& p, const AttentionItem& item) {
  Attender<Shape, kHalf> attender = {
      p, item, item.first_position + (item.first_row + item.rows - 1) / item.heads + 1, item.first_chunk};
  attender.LoadQueries();
  PHX_UNROLL_BY(1)
  for (int i = 0; i < Shape::kSlots - 1; ++i) attender.LoadNext();
  float total[Shape::kRowTiles][Shape::kValueTiles][4], o[Shape::kRowTiles][Shape::kValueTiles][4];
  float max[Shape::kRowTiles][2], sum[Shape::kRowTiles][2], chunk_max[Shape::kRowTiles][2],
      chunk_sum[Shape::kRowTiles][2];
  PHX_UNROLL
  for (int r = 0; r < Shape::kRowTiles; ++r) {
    max[r][0] = max[r][1] = sum[r][0] = sum[r][1] = 0;
    PHX_UNROLL
    for (int j = 0; j < Shape::kValueTiles; ++j) {
      PHX_UNROLL
      for (int i = 0; i < 4; ++i) total[r][j][i] = 0;
    }
  }
  const int lane = ThreadIndex() % kWarpSize, warp = ThreadIndex() / kWarpSize;
  const int first_channel = warp * Shape::kValueTiles * 8 + lane % 4 * 2;
  PHX_UNROLL_BY(1)
  for (int chunk = item.first_chunk; chunk < item.end_chunk; ++chunk) {
    attender.Chunk(chunk, o, chunk_max, chunk_sum);
    const bool first = chunk == item.first_chunk;
    PHX_UNROLL
    for (int r = 0; r < Shape::kRowTiles; ++r) {
      PHX_UNROLL
      for (int h = 0; h < 2; ++h) {
        if (!first && chunk_max[r][h] == -Infinity()) continue;  // the row ends before this chunk
        const FoldFactors f = FactorsOf(max[r][h], chunk_max[r][h]);
        max[r][h] = first ? chunk_max[r][h] : f.max;
        sum[r][h] = first ? chunk_sum[r][h] : Fold(sum[r][h], chunk_sum[r][h], f);
        PHX_UNROLL
        for (int j = 0; j < Shape::kValueTiles; ++j) {
          PHX_UNROLL
          for (int i = 0; i < 2; ++i) {
            float& to = total[r][j][h * 2 + i];
            to = first ? o[r][j][h * 2 + i] : Fold(to, o[r][j][h * 2 + i], f);
          }
        }
      }
    }
  }
  WaitCopies<0>();
  if (item.partial >= 0) {
    attender.ForRows([&](int row, int r, int h) {
      const int64_t at = item.partial + static_cast<int64_t>(row) * item.partial_chunks + item.first_chunk;
      if (lane % 4 == 0 && warp == 0) {
        p.partial_max[at] = max[r][h];
        p.partial_sum[at] = sum[r][h];
      }
      PHX_UNROLL
      for (int j = 0; j < Shape::kValueTiles; ++j) {
        const int channel = first_channel + j * 8;
        if (channel >= p.partial_pitch) continue;
        p.partial_out[at * p.partial_pitch + channel] = total[r][j][h * 2];
        p.partial_out[at * p.partial_pitch + channel + 1] = total[r][j][h * 2 + 1];
      }
    });
    return;
  }
  attender.ForRows([&](int row, int r, int h) {
    const int packed = item.first_row + row;
    uint16_t* to = p.out + (int64_t{item.first_token} + packed / item.heads) * p.out_stride +
                   int64_t{p.head_list[item.first_head + packed % item.heads]} * p.value_dim;
    PHX_UNROLL
    for (int j = 0; j < Shape::kValueTiles; ++j) {
      StorePair<kHalf>(to, first_channel + j * 8, p.value_dim, Div(total[r][j][h * 2], sum[r][h]),
                       Div(total[r][j][h * 2 + 1], sum[r][h]));
    }
  });
}

// Blocks share out the items. How many there are the device alone may know.
template <class Shape, bool kHalf>
PHX_GLOBAL void PHX_BOUNDS(Shape::kThreads, Shape::kBlocks) Attention(AttentionArgs p) {
  WaitForPrevious();
  const int count = p.counts->items;
  PHX_UNROLL_BY(1)
  for (int i = BlockX(); i < count; i += GridX()) {
    const AttentionItem item = p.items[i];
    if (item.first_chunk < item.end_chunk) {
      // What the last item left in shared memory has been read by all.
      if (i != BlockX()) SyncThreads();
      Attend<Shape, kHalf>(p, item);
    }
    if (PHX_FAULT(kAttentionOneItem)) break;
  }
}

// A block a packed row of its items; a thread a channel.
template <bool kHalf>
PHX_GLOBAL void PHX_BOUNDS(kCombineThreads, 1) AttentionCombine(AttentionArgs p) {
  WaitForPrevious();
  const int count = p.counts->combined;
  for (int i = BlockY(); i < count; i += GridY()) {
    const AttentionItem item = p.combined[i];
    const int row = BlockX();
    if (row >= item.rows) continue;
    const int packed = item.first_row + row;
    const int limit = item.first_position + packed / item.heads + 1;
    const int chunks = (limit + kChunk - 1) / kChunk;
    const int64_t first = item.partial + static_cast<int64_t>(row) * item.partial_chunks;
    uint16_t* to = p.out + (int64_t{item.first_token} + packed / item.heads) * p.out_stride +
                   int64_t{p.head_list[item.first_head + packed % item.heads]} * p.value_dim;
    for (int channel = ThreadIndex(); channel < p.value_dim; channel += kCombineThreads) {
      float max = p.partial_max[first], sum = p.partial_sum[first];
      float out = p.partial_out[first * p.partial_pitch + channel];
      for (int c = 1; c < chunks; ++c) {
        const FoldFactors f = FactorsOf(max, p.partial_max[first + c]);
        max = f.max;
        sum = Fold(sum, p.partial_sum[first + c], f);
        out = Fold(out, p.partial_out[(first + c) * p.partial_pitch + channel], f);
      }
      to[channel] = FromFloat<kHalf>(Div(out, sum));
    }
  }
}

// Blocks share out the sequences; a thread an item.
PHX_GLOBAL void PHX_BOUNDS(kCombineThreads, 1) AttentionItems(AttentionItemsArgs p) {
  WaitForPrevious();
  if (PHX_FAULT(kAttentionStaleItems)) return;
  const AttentionCounts counts = *p.counts;
  for (int s = BlockX(); s < counts.sequences; s += GridX()) {
    const AttentionSequenceArgs sequence = p.sequences[s];
    const int per_tile = sequence.chunks > 0 ? sequence.chunks : 1;
    int first_tile = 0;
    int64_t partial = sequence.first_partial;
    for (int g = 0; g < p.num_kv_heads; ++g) {
      const AttentionHeads heads = p.kv_heads[g];
      const int packed = sequence.num_rows * heads.heads;
      const int tiles = (packed + counts.rows_per_item - 1) / counts.rows_per_item;
      for (int i = ThreadIndex(); i < tiles * per_tile; i += kCombineThreads) {
        const int tile = i / per_tile, chunk = i % per_tile;
        AttentionItem item;
        item.block_table = sequence.block_table;
        item.first_position = sequence.first_position;
        item.first_token = sequence.first_token;
        item.kv_head = g;
        item.first_row = tile * counts.rows_per_item;
        item.rows = packed - item.first_row;
        if (item.rows > counts.rows_per_item) item.rows = counts.rows_per_item;
        item.first_head = heads.first_head;
        item.heads = heads.heads;
        const int limit = item.first_position + (item.first_row + item.rows - 1) / item.heads + 1;
        item.end_chunk = (limit + kChunk - 1) / kChunk;
        if (sequence.chunks > 0) {
          item.partial = partial + static_cast<int64_t>(item.first_row) * sequence.chunks;
          item.partial_chunks = sequence.chunks;
          if (chunk == 0) p.combined[sequence.first_combined + first_tile + tile] = item;
          item.first_chunk = chunk;  // an item beyond the row's last chunk is empty
          if (chunk < item.end_chunk) item.end_chunk = chunk + 1;
        }
        p.items[sequence.first_item + first_tile * per_tile + i] = item;
      }
      first_tile += tiles;
      partial += static_cast<int64_t>(packed) * sequence.chunks;
    }
  }
}

// Pairs differ in the number of rows only: they give the same bits.
using Narrow16 = AttentionShape<1, 64, 64, 64, 4, 8>;
using Narrow64 = AttentionShape<4, 64, 64, 64, 3, 8>;
using Usual16 = AttentionShape<1, 128, 128, 64, 4, 8>;
using Usual64 = AttentionShape<4, 128, 128, 64, 3, 8>;
using Wide16 = AttentionShape<1, 256, 256, 64, 3, 8>;
using Latent16 = AttentionShape<1, 576, 512, 32, 3, 8>;

template <class Shape>
int Run(const AttentionArgs& p, int blocks, bool half, void* stream) {
  return LaunchKernel("Attention", half ? Attention<Shape, true> : Attention<Shape, false>,
                      GridDim{static_cast<unsigned>(blocks), 1, 1}, Shape::kThreads, Shape::kSharedBytes,
                      stream, p);
}

template <class Shape>
bool Fits(int key_dim, int value_dim) {
  return key_dim <= Shape::kKeyDim && value_dim <= Shape::kValueDim;
}

}  // namespace

bool AttentionSupports(int key_dim, int value_dim) {
  return Fits<Wide16>(key_dim, value_dim) || Fits<Latent16>(key_dim, value_dim);
}

int AttentionRowsPerItem(int key_dim, int value_dim, bool many) {
  return many && Fits<Usual64>(key_dim, value_dim) ? 64 : 16;
}

int LaunchAttentionItems(const AttentionItemsArgs& p, int blocks, void* stream) {
  if (blocks == 0) return 0;
  return LaunchKernel("AttentionItems", AttentionItems, GridDim{static_cast<unsigned>(blocks), 1, 1},
                      kCombineThreads, 0, stream, p);
}

int LaunchAttention(const AttentionArgs& p, int blocks, bool many, bool half, void* stream) {
  if (blocks == 0) return 0;
  const int key_dim = p.cache.key_dim, value_dim = p.value_dim;
  if (Fits<Narrow16>(key_dim, value_dim)) {
    return many ? Run<Narrow64>(p, blocks, half, stream) : Run<Narrow16>(p, blocks, half, stream);
  }
  if (Fits<Usual16>(key_dim, value_dim)) {
    return many ? Run<Usual64>(p, blocks, half, stream) : Run<Usual16>(p, blocks, half, stream);
  }
  return Fits<Wide16>(key_dim, value_dim) ? Run<Wide16>(p, blocks, half, stream)
                                          : Run<Latent16>(p, blocks, half, stream);
}

int LaunchAttentionCombine(const AttentionArgs& p, int rows_per_item, int blocks, bool half, void* stream) {
  if (blocks == 0) return 0;
  return LaunchKernel("AttentionCombine", half ? AttentionCombine<true> : AttentionCombine<false>,
                      GridDim{static_cast<unsigned>(rows_per_item), static_cast<unsigned>(blocks), 1},
                      kCombineThreads, 0, stream, p);
}

}  // namespace phalanx::cuda
