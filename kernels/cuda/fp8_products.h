// Weights of e4m3 and products with them in mode `fast`: many rows of x are quantised too and multiplied by
// cuBLASLt, few rows stay 16 bits wide and are multiplied by our own kernel, from the same copy.
#pragma once

#include <map>
#include <memory>
#include <optional>
#include <set>
#include <string>
#include <utility>

#include "kernels/cuda/cublaslt.h"
#include "kernels/cuda/cuda_memory.h"
#include "kernels/cuda/fast_columns.h"
#include "kernels/cuda/gemm_fp8.h"

namespace phalanx::cuda {

// Row-major [N, stride] of e4m3; behind them the scales of each part (LtProblem::weight_scales).
class Fp8Weight : public PackedWeight {
 public:
  int64_t n() const override { return n_; }
  int64_t k() const override { return columns_.k; }
  int64_t bytes() const override { return memory_->bytes(); }
  const std::vector<Subtree>& subtrees() const override { return columns_.subtrees; }

  const void* owner() const { return owner_; }
  const uint8_t* rows() const { return memory_->as<const uint8_t>(); }
  const FastColumns& columns() const { return columns_; }
  Fp8Scaling scaling() const { return scaling_; }
  // In bytes from rows().
  int64_t scales_at(size_t part) const { return scales_at_[part]; }
  // Whether grouped products may have both.
  bool LiesAs(const Fp8Weight& other) const {
    return n_ == other.n_ && k() == other.k() && scaling_ == other.scaling_;
  }

 private:
  friend class Fp8Products;
  Fp8Weight() = default;
  const void* owner_ = nullptr;
  int64_t n_ = 0;
  FastColumns columns_;
  Fp8Scaling scaling_ = Fp8Scaling::kRows;
  std::vector<int64_t> scales_at_;
  std::unique_ptr<CudaBuffer> memory_;
};

class Fp8Products {
 public:
  // `library` outlives it.
  Fp8Products(std::shared_ptr<Runtime> runtime, bool half, LtProducts* library);

  // Null where the weight is not of e4m3, and, with a line in the log for each reason, where cuBLASLt has no
  // product for it on this device.
  absl::StatusOr<std::unique_ptr<Fp8Weight>> Pack(const PackWeightParams& params);
  // As CudaOps::Product. With `gate_up`, of gate | up, the product is that of silu(gate) * up, and x is
  // scratch.
  absl::Status Product(const char* call, const Matrix& x, const Fp8Weight& weight, const float* bias, void* y,
                       int64_t y_stride, int64_t tree_stride, bool y_fp32, bool may_search,
                       const Matrix* gate_up = nullptr);
  // Where a norm is to leave rows of its y quantised, for the product that reads them
  // (RmsNormParams::read_by) to take; without codes where that product takes none.
  absl::StatusOr<Fp8RowsOut> RowsOfNorm(const RmsNormParams& norm);
  // As FastProducts::Grouped.
  absl::Status Grouped(const GroupedMatmulParams& p, const ExpertListArgs& list, const Fp8Weight& any,
                       void* y, int64_t y_stride);
  // See Scratch::Keep.
  void KeepScratch();

 private:
  // The product of part `part` of rows [first, first + count) of x by our own kernel.
  absl::Status RunOwn(const char* call, const FastInput& x, const Fp8Weight& weight, size_t part,
                      int64_t first, int64_t count, const float* bias, void* y, int64_t y_stride,
                      bool y_fp32);
  // Rows of x that the library takes; what is left over of 4 is our own kernel's.
  static int64_t LibraryRows(const Fp8Weight& weight, int64_t rows);
  // Memory for so many rows, quantised for the weight; what there was before is lost.
  absl::StatusOr<Fp8RowsOut> RowsFor(const Fp8Weight& weight, int64_t rows);
  absl::StatusOr<Fp8RowsOut> Quantise(const char* call, const Matrix& x, bool gated, const Fp8Weight& weight,
                                      int64_t rows);
  absl::StatusOr<bool> LibraryTakes(const Fp8Weight& weight);
  std::string NoAlgorithm(const Fp8Weight& weight) const;
  // Logs what is not done by cuBLASLt and why, once for each reason; `more` is of the first time.
  void Refuse(const std::string& why, const std::string& more = "");

  std::shared_ptr<Runtime> runtime_;
  const bool half_;
  LtProducts* const library_;
  std::map<std::tuple<int64_t, int64_t, Fp8Scaling>, bool> taken_;  // by N and K
  std::set<std::string> refused_;
  Scratch packed_x_, codes_, scales_, sums_;
  // What the last norm left in codes_ and scales_, and for what.
  struct FromNorm {
    const Fp8Weight* weight = nullptr;
    Matrix x;
    Fp8RowsOut rows;
  };
  std::optional<FromNorm> from_norm_;
};

}  // namespace phalanx::cuda
