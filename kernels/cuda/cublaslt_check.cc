// That cublaslt_api.h says what cublasLt.h does: compiled with the CUDA module, where the header is found.
#include "kernels/cuda/cublaslt_api.h"

#if __has_include(<cublasLt.h>)
#include <cublasLt.h>

#include <type_traits>

namespace phalanx::cuda::lt {

static_assert(kF32 == CUDA_R_32F && kF16 == CUDA_R_16F && kBF16 == CUDA_R_16BF);
static_assert(kComputeF32 == CUBLAS_COMPUTE_32F && kTranspose == CUBLAS_OP_T);
static_assert(kDescTransA == CUBLASLT_MATMUL_DESC_TRANSA);
static_assert(kF8E4M3 == CUDA_R_8F_E4M3);
static_assert(kDescScalePointerA == CUBLASLT_MATMUL_DESC_A_SCALE_POINTER &&
              kDescScalePointerA + 1 == CUBLASLT_MATMUL_DESC_B_SCALE_POINTER);
static_assert(kDescFastAccumulation == CUBLASLT_MATMUL_DESC_FAST_ACCUM);
static_assert(kDescScaleModeA == CUBLASLT_MATMUL_DESC_A_SCALE_MODE &&
              kDescScaleModeA + 1 == CUBLASLT_MATMUL_DESC_B_SCALE_MODE);
static_assert(kScaleOuterVector == CUBLASLT_MATMUL_MATRIX_SCALE_OUTER_VEC_32F &&
              kScaleVector128 == CUBLASLT_MATMUL_MATRIX_SCALE_VEC128_32F &&
              kScaleBlock128 == CUBLASLT_MATMUL_MATRIX_SCALE_BLK128x128_32F);
static_assert(kMaxWorkspaceBytes == CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES);
static_assert(kMinAlignmentA == CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES &&
              kMinAlignmentA + 3 == CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES);
static_assert(CUBLAS_STATUS_SUCCESS == 0 && sizeof(cublasStatus_t) == sizeof(int));
static_assert(sizeof(Algorithm) == sizeof(cublasLtMatmulAlgo_t));
static_assert(sizeof(HeuristicResult) == sizeof(cublasLtMatmulHeuristicResult_t) &&
              offsetof(HeuristicResult, workspace) ==
                  offsetof(cublasLtMatmulHeuristicResult_t, workspaceSize) &&
              offsetof(HeuristicResult, state) == offsetof(cublasLtMatmulHeuristicResult_t, state));
static_assert(sizeof(cublasLtHandle_t) == sizeof(Handle) && sizeof(cublasLtMatrixLayout_t) == sizeof(Layout));

}  // namespace phalanx::cuda::lt
#endif
