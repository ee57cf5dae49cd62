// Products of many rows in mode `fast`: by cuBLASLt or our own kernel, whichever was fastest when both were
// tried, once per device, shape and bucket of rows (cublaslt_cache.h keeps it).
#pragma once

#include <functional>
#include <map>
#include <memory>
#include <string>
#include <tuple>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "kernels/cuda/cublaslt_api.h"
#include "kernels/cuda/cublaslt_cache.h"
#include "kernels/cuda/cuda_memory.h"
#include "kernels/cuda/gemm_fp8.h"
#include "kernels/cuda/runtime.h"

namespace phalanx::cuda {

// y = x W^T of 16-bit x and W, or of e4m3 with scales, row-major, into 16 bits or fp32. See
// LtProducts::Takes.
struct LtProblem {
  const void* weight = nullptr;  // [n, weight_stride]
  int64_t weight_stride = 0;
  const void* x = nullptr;  // [rows, x_stride]
  int64_t x_stride = 0;
  void* y = nullptr;  // [rows, y_stride]
  int64_t y_stride = 0;
  int64_t rows = 0, n = 0, k = 0;
  bool half = false, y_fp32 = false;
  // Of e4m3 (gemm_fp8.h); null: of 16 bits. kRows: [n] and [rows]. kBlocks: [ceil(n / 128),
  // Fp8ScaleStride(k)] and [ceil(k / 128), rows].
  const float* weight_scales = nullptr;
  const float* x_scales = nullptr;
  Fp8Scaling scaling = Fp8Scaling::kRows;

  bool fp8() const { return weight_scales != nullptr; }
};

// Floats between rows of a weight's scales, of k columns.
inline int64_t Fp8ScaleStride(int64_t k) { return ((k + kFp8Block - 1) / kFp8Block + 3) / 4 * 4; }

struct LtOptions {
  std::string cache_folder;
  // Our own kernel, tried beside the library's algorithms: enqueues the product, or is Unimplemented for one
  // it does not take. May be null.
  std::function<absl::Status(const LtProblem&)> own;
  int own_version = 0;
  // Seconds of a clock that rises; null: the host's.
  std::function<double()> clock;
};

class LtProducts {
 public:
  // FailedPrecondition naming the library's version and what it says where it cannot be used.
  static absl::StatusOr<std::unique_ptr<LtProducts>> Create(const std::shared_ptr<Runtime>& runtime,
                                                            const lt::Table& table, LtOptions options);
  ~LtProducts();
  LtProducts(const LtProducts&) = delete;
  LtProducts& operator=(const LtProducts&) = delete;

  // Rows of each matrix must begin at multiples of 16 bytes; of e4m3 also those of the scales, and n and k
  // must be multiples of 16, rows of kBlocks of 4.
  static bool Takes(const LtProblem& p);
  // Whether the library has an algorithm for the product of so many rows; the pointers are not read.
  absl::StatusOr<bool> Offers(const LtProblem& p) const;
  // Enqueues the product. The first of its shape and bucket is repeated some tens of times, until the fastest
  // way is known; not while `may_search` is false: then a way that is good for most shapes is taken, once.
  // Unimplemented, and nothing is enqueued, for a product of e4m3 that nothing takes.
  absl::Status Run(const LtProblem& p, bool may_search);
  const std::string& version() const { return version_; }

 private:
  struct Plan;
  using PlanKey = std::tuple<int64_t, int64_t, int64_t, int64_t, int64_t, int64_t, bool, bool, int>;

  LtProducts(std::shared_ptr<Runtime> runtime, const lt::Table& table, LtOptions options);
  absl::Status Check(int status, const char* what) const;
  absl::StatusOr<std::unique_ptr<Plan>> MakePlan(const LtProblem& p) const;
  absl::Status RunChoice(const LtProblem& p, const Plan& plan, const ProductChoice& choice);
  template <typename T>
  absl::Status SetDesc(const Plan& plan, int attribute, T value) const;
  absl::Status SetScales(const LtProblem& p, const Plan& plan) const;
  absl::Status SetFastSums(const Plan& plan, bool fast) const;
  // Up to `most` algorithms that the library has for it.
  absl::StatusOr<std::vector<lt::HeuristicResult>> Candidates(const Plan& plan, int most) const;
  absl::StatusOr<std::vector<ProductChoice>> Choices(const LtProblem& p, const Plan& plan, int most) const;
  bool OwnTakes(const LtProblem& p) const { return options_.own != nullptr && !p.fp8(); }
  absl::StatusOr<ProductChoice> Search(const LtProblem& p, const Plan& plan, bool may_search);
  ProductKey KeyOf(const LtProblem& p) const;

  std::shared_ptr<Runtime> runtime_;
  const lt::Table table_;
  LtOptions options_;
  std::string version_;
  lt::Handle handle_ = nullptr;
  std::unique_ptr<CudaBuffer> workspace_;
  ProductCache cache_;
  std::map<PlanKey, std::unique_ptr<Plan>> plans_;
};

}  // namespace phalanx::cuda
