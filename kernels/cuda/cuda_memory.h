// What CudaOps hands out and keeps: memory, weights, tables and caches on a device.
#pragma once

#include <cstdint>
#include <memory>
#include <utility>
#include <vector>

#include "absl/status/statusor.h"
#include "base/status_macros.h"
#include "kernels/cuda/kernels.h"
#include "kernels/cuda/runtime.h"
#include "kernels/ops.h"

namespace phalanx::cuda {

class QuantPacking;

class CudaBuffer : public Buffer {
 public:
  static absl::StatusOr<std::unique_ptr<CudaBuffer>> Create(const std::shared_ptr<Runtime>& runtime,
                                                            int64_t bytes);
  // A buffer with a copy of `values`.
  template <typename T>
  static absl::StatusOr<std::unique_ptr<CudaBuffer>> Of(const std::shared_ptr<Runtime>& runtime,
                                                        const std::vector<T>& values) {
    const auto bytes = static_cast<int64_t>(values.size() * sizeof(T));
    PHX_ASSIGN_OR_RETURN(auto buffer, Create(runtime, bytes));
    if (bytes > 0) {
      PHX_RETURN_IF_ERROR(runtime->Copy(buffer->data(), values.data(), bytes, CopyKind::kToDevice));
    }
    return buffer;
  }
  ~CudaBuffer() override { runtime_->Free(data_); }
  CudaBuffer(const CudaBuffer&) = delete;
  CudaBuffer& operator=(const CudaBuffer&) = delete;

  void* data() override { return data_; }
  int64_t bytes() const override { return bytes_; }
  template <typename T>
  T* as() const {
    return static_cast<T*>(data_);
  }

 private:
  CudaBuffer(std::shared_ptr<Runtime> runtime, void* data, int64_t bytes)
      : runtime_(std::move(runtime)), data_(data), bytes_(bytes) {}
  std::shared_ptr<Runtime> runtime_;
  void* data_;
  int64_t bytes_;
};

// Memory that grows when more is asked for than ever before, and then only; what it held is lost. After Keep
// the memory that it has then stays as long as the object, be it outgrown or not.
class Scratch {
 public:
  explicit Scratch(std::shared_ptr<Runtime> runtime) : runtime_(std::move(runtime)) {}
  absl::StatusOr<void*> Get(int64_t bytes);
  void Keep() { keep_ = buffer_ != nullptr; }
  template <typename T>
  absl::StatusOr<T*> Get(int64_t count) {
    PHX_ASSIGN_OR_RETURN(void* const data, Get(count * static_cast<int64_t>(sizeof(T))));
    return static_cast<T*>(data);
  }

 private:
  std::shared_ptr<Runtime> runtime_;
  std::unique_ptr<CudaBuffer> buffer_;
  bool keep_ = false;
  std::vector<std::unique_ptr<CudaBuffer>> kept_;  // outgrown
};

// See GemmArgs: fragments, segments and the tree.
class CudaWeight : public PackedWeight {
 public:
  static absl::StatusOr<std::unique_ptr<CudaWeight>> Pack(const std::shared_ptr<Runtime>& runtime, bool half,
                                                          const PackWeightParams& params);
  int64_t n() const override { return n_; }
  int64_t k() const override { return k_; }
  int64_t bytes() const override { return fragments_->bytes(); }
  const std::vector<Subtree>& subtrees() const override { return subtrees_; }

  const void* owner() const { return owner_; }
  const uint16_t* fragments() const { return fragments_->as<const uint16_t>(); }
  int total_blocks() const { return total_blocks_; }
  // Whether segments of a row of x begin at multiples of 8 columns.
  bool aligned() const { return aligned_; }
  // The weight's part of GemmArgs; x is read at its own columns or, where `packed`, as PackRows leaves it.
  GemmArgs Args(bool packed) const;
  PackRowsArgs PackArgs() const;
  const QuantFormat& quant() const { return quant_; }
  // Whether both have one format and take the columns of x in one order.
  bool LiesAs(const CudaWeight& other) const;

 private:
  CudaWeight() = default;
  static absl::StatusOr<std::unique_ptr<CudaWeight>> Make(const std::shared_ptr<Runtime>& runtime,
                                                          const PackWeightParams& params,
                                                          const std::vector<GemmSegment>& segments,
                                                          const std::vector<int32_t>& shard_begin);
  // False where the weight cannot stay quantised.
  absl::StatusOr<bool> PackQuantised(const std::shared_ptr<Runtime>& runtime, QuantPacking* plan);
  absl::Status PackHalves(const std::shared_ptr<Runtime>& runtime, bool half, const PackWeightParams& params,
                          const std::vector<GemmSegment>& segments);

  const void* owner_ = nullptr;
  int64_t n_ = 0, k_ = 0;
  std::vector<Subtree> subtrees_;
  int row_tiles_ = 0, total_blocks_ = 0, num_segments_ = 0, num_trees_ = 0, max_shards_per_tree_ = 0;
  bool aligned_ = true;
  QuantFormat quant_;
  std::vector<int32_t> gathered_;        // of columns_
  std::unique_ptr<CudaBuffer> columns_;  // see PackRowsArgs
  std::unique_ptr<CudaBuffer> fragments_, direct_, packed_, shard_begin_, tree_begin_;
};

class CudaRopeTable : public RopeTable {
 public:
  static absl::StatusOr<std::unique_ptr<CudaRopeTable>> Create(const std::shared_ptr<Runtime>& runtime,
                                                               const RopeConfig& config,
                                                               int64_t num_positions);
  int rotary_dim() const override { return 2 * args_.half; }
  int64_t num_positions() const override { return args_.num_positions; }
  const void* owner() const { return owner_; }
  const RopeTableArgs& args() const { return args_; }

 private:
  CudaRopeTable() = default;
  const void* owner_ = nullptr;
  std::unique_ptr<CudaBuffer> cos_, sin_;
  RopeTableArgs args_;
};

class CudaKvCache : public KvCache {
 public:
  static absl::StatusOr<std::unique_ptr<CudaKvCache>> Create(const std::shared_ptr<Runtime>& runtime,
                                                             const KvCacheShape& shape, KvCodec codec,
                                                             int64_t num_blocks);
  static int64_t BlockBytes(const KvCacheShape& shape, KvCodec codec);
  const KvCacheShape& shape() const override { return shape_; }
  int64_t num_blocks() const override { return num_blocks_; }
  const void* owner() const { return owner_; }
  CacheArgs Layer(int layer) const;

 private:
  CudaKvCache() = default;
  const void* owner_ = nullptr;
  KvCacheShape shape_;
  KvCodec codec_ = KvCodec::kNone;
  int64_t num_blocks_ = 0;
  std::unique_ptr<CudaBuffer> keys_, values_, key_scales_, value_scales_;  // scales of codes
};

}  // namespace phalanx::cuda
