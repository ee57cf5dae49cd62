// The CPU backend's paged KV cache and attention over it.
#pragma once

#include <memory>
#include <vector>

#include "absl/status/statusor.h"
#include "kernels/cpu/cpu_weight.h"
#include "kernels/cpu/simd_kernels.h"
#include "kernels/cpu/thread_pool.h"
#include "kernels/ops.h"
#include "kernels/reference/host_objects.h"

namespace phalanx {

// How a cache is held, and what the kernels read.
struct KvFormat {
  PanelFormat panels;
  // Held as kernels/quantised_kv.h says, in the places that elements have in the panels; widened to them
  // where it is read.
  KvCodec codec = KvCodec::kNone;

  static KvFormat Of(KvType type, PanelFormat products);
  bool operator==(const KvFormat&) const = default;
  int64_t panel_bytes() const { return panels == PanelFormat::kF32 ? 4 : 2; }  // of an element
  bool coded() const { return codec != KvCodec::kNone; }
  int64_t held_bytes() const { return coded() ? 1 : panel_bytes(); }  // likewise
};

// [block][layer][kv head]: keys in panels [block_size / 16][key_depth][16 keys], then values in panels
// [ceil(value_dim / 16)][block_size][16 channels], in simd_kernels.h's formats (bf16 pairs: key_depth is
// key_dim rounded up to 32, the rest zero; else key_dim). Blocks of less than 16 positions hold rows instead:
// [block_size][key_dim], [block_size][value_dim], and are gathered into panels when they are read. Of codes,
// scales follow: [groups of a key][block_size], [groups of a value][block_size].
class CpuKvCache : public KvCache {
 public:
  static absl::StatusOr<std::unique_ptr<CpuKvCache>> Create(const KvCacheShape& shape, int64_t num_blocks,
                                                            KvFormat format);
  static int64_t BlockBytes(const KvCacheShape& shape, KvFormat format);

  const KvCacheShape& shape() const override { return shape_; }
  int64_t num_blocks() const override { return num_blocks_; }
  KvFormat format() const { return format_; }
  int64_t key_depth() const { return KeyDepth(shape_, format_.panels); }
  bool panels() const { return shape_.block_size >= kPanel; }

  // Rounds and writes one position of one head.
  void Store(int64_t slot, int layer, int head, const float* key, const float* value);
  // First byte of a block's keys and values, and the scales of codes: [group][position].
  const char* Keys(int64_t block, int layer, int head) const;
  const char* Values(int64_t block, int layer, int head) const;
  const uint16_t* KeyScales(int64_t block, int layer, int head) const;
  const uint16_t* ValueScales(int64_t block, int layer, int head) const;

 private:
  CpuKvCache() = default;
  static int64_t KeyDepth(const KvCacheShape& shape, PanelFormat format);

  KvCacheShape shape_;
  int64_t num_blocks_ = 0;
  KvFormat format_ = {PanelFormat::kF32};
  int64_t head_bytes_ = 0;  // of a block
  std::unique_ptr<HostBuffer> memory_;
};

// One thread at a time; works on the pool's.
class CpuAttention {
 public:
  // `products`: of the rung; its attention_chunk reads caches of its own format.
  CpuAttention(ThreadPool& pool, const GemmKernels& products)
      : pool_(pool), products_(products), scratch_(static_cast<size_t>(pool.num_threads())) {}
  // Validated params.
  absl::Status Run(const AttentionParams& params, const CpuKvCache& cache);

 private:
  // Some rows of a sequence for some query heads that share a KV head. All rows end in the same chunk.
  struct Task {
    const AttentionSequence* sequence;
    int64_t first_row;  // in the sequence
    int num_rows;
    int first_head;
    int num_heads;
  };
  struct Layout;  // of a thread's scratch
  struct Work;    // a task, where it is computed
  static void RunTask(const Work& work);
  // The keys [begin, begin + num_keys) of the task's sequence.
  static void RunAvx2Chunk(const Work& work, const AttentionVectors& vectors, int64_t begin, int num_keys);
  static void RunPairChunk(const Work& work, const AttentionVectors& vectors, int64_t begin, int num_keys);

  ThreadPool& pool_;
  const GemmKernels& products_;
  std::vector<Scratch> scratch_;
  std::vector<Task> tasks_;
};

}  // namespace phalanx
