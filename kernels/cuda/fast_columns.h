// Columns of row-major weights of mode `fast`, and x as products with them read it.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "kernels/cuda/cuda_memory.h"
#include "kernels/cuda/gemm_fast.h"

namespace phalanx::cuda {

// How the columns of a row-major weight lie: those of each subtree begin at a multiple of some columns, with
// zeros between.
struct FastColumns {
  struct Part {
    int64_t begin = 0;    // first column in a row
    int64_t x_begin = 0;  // in x
    int64_t cols = 0;
  };

  // `unit`: a multiple of kFastBlock.
  static absl::StatusOr<FastColumns> Of(const std::shared_ptr<Runtime>& runtime, const PackWeightParams& p,
                                        int64_t unit);
  // Into rows of `stride` columns, as the weight's lie.
  PackRowsArgs PackArgs() const;

  int64_t k = 0, stride = 0;
  std::vector<Subtree> subtrees;
  std::vector<Part> parts;  // one for each subtree, one without
  bool aligned = true;      // parts of a row of x begin, and end, at multiples of 8 columns
  int num_segments = 0;     // of parts that are not empty
  std::unique_ptr<CudaBuffer> segments;
};

// x where a kernel can read it, and the first column of a part.
struct FastInput {
  const uint16_t* x = nullptr;
  int64_t stride = 0;
  bool packed = false;

  const uint16_t* Columns(const FastColumns::Part& part) const {
    return x + (packed ? part.begin : part.x_begin);
  }
};
// x itself, or what is packed of it into `packed`.
absl::StatusOr<FastInput> ReadFastInput(Runtime& runtime, const char* call, const Matrix& x,
                                        const FastColumns& columns, Scratch* packed);
// Of grouped products with weights of `n` rows and these columns, what does not depend on their elements; x
// as above.
absl::StatusOr<RowMajorGemmArgs> GroupedArgs(Runtime& runtime, const GroupedMatmulParams& p,
                                             const ExpertListArgs& list, const FastColumns& columns,
                                             int64_t n, void* y, int64_t y_stride, Scratch* packed);

}  // namespace phalanx::cuda
