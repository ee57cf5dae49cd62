// Weights and products of mode `fast`.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "kernels/cuda/cublaslt.h"
#include "kernels/cuda/cuda_memory.h"
#include "kernels/cuda/fast_columns.h"
#include "kernels/cuda/fp8_products.h"
#include "kernels/cuda/gemm_fast.h"
#include "kernels/cuda/hopper.h"

namespace phalanx::cuda {

// Row-major [N, stride] of 16 bits.
class FastWeight : public PackedWeight {
 public:
  static absl::StatusOr<std::unique_ptr<FastWeight>> Pack(const std::shared_ptr<Runtime>& runtime, bool half,
                                                          const PackWeightParams& params);
  int64_t n() const override { return n_; }
  int64_t k() const override { return columns_.k; }
  int64_t bytes() const override { return rows_->bytes(); }
  const std::vector<Subtree>& subtrees() const override { return columns_.subtrees; }

  const void* owner() const { return owner_; }
  const uint16_t* rows() const { return rows_->as<const uint16_t>(); }
  const FastColumns& columns() const { return columns_; }

 private:
  FastWeight() = default;
  const void* owner_ = nullptr;
  int64_t n_ = 0;
  FastColumns columns_;
  std::unique_ptr<CudaBuffer> rows_;
};

class FastProducts {
 public:
  // `table`: cuBLASLt; null: products of many rows are made by LaunchFastGemm, too (the emulator).
  static absl::StatusOr<std::unique_ptr<FastProducts>> Create(const std::shared_ptr<Runtime>& runtime,
                                                              bool half, const std::string& cache_folder,
                                                              const lt::Table* table);

  // As CudaOps::Product.
  absl::Status Product(const char* call, const Matrix& x, const FastWeight& weight, const float* bias,
                       void* y, int64_t y_stride, int64_t tree_stride, bool y_fp32, bool may_search);
  // GroupedMatmul's products into y, a row per choice (fp32 where p has weights). `weights`: of the experts,
  // on the device, all as `any`, a FastWeight or an Fp8Weight; `lists`: num_experts + 2 * num_experts *
  // num_tokens elements of scratch.
  absl::Status Grouped(const GroupedMatmulParams& p, const PackedWeight& any, const uint16_t* const* weights,
                       int32_t* lists, void* y, int64_t y_stride);
  // Whether the kernels for sm_90a (kernels/cuda/hopper.h) run here.
  bool hopper() const { return hopper_; }
  // Null without cuBLASLt, and on a device without products of e4m3.
  Fp8Products* fp8() { return fp8_.get(); }
  // See Scratch::Keep.
  void KeepScratch() {
    if (fp8_ != nullptr) fp8_->KeepScratch();
    packed_x_.Keep();
    sums_.Keep();
  }
  // "cuBLASLt 13.1.0"; empty without.
  std::string Describe() const;

 private:
  FastProducts(std::shared_ptr<Runtime> runtime, bool half);
  absl::Status RunHopper(const LtProblem& p);

  std::shared_ptr<Runtime> runtime_;
  const bool half_;
  const bool hopper_;
  std::unique_ptr<LtProducts> many_;
  std::unique_ptr<Fp8Products> fp8_;
  Scratch packed_x_, sums_;
};

// What LaunchRmsNorm takes of it. `fast`: the device's, null in mode invariant; what its next product with
// norm.read_by reads quantised is for the norm to make.
absl::StatusOr<RmsNormArgs> NormArgs(const RmsNormParams& norm, FastProducts* fast);

}  // namespace phalanx::cuda
