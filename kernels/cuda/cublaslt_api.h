// The part of cuBLASLt's C interface that products use, so that neither its headers nor the library are
// needed to build: the library is opened at run time. Values and layouts are those of cublasLt.h, which
// cublaslt_check.cc compares where a toolkit is.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>

#include "absl/status/statusor.h"

namespace phalanx::cuda::lt {

using Handle = void*;
using MatmulDesc = void*;
using Layout = void*;
using Preference = void*;

// cudaDataType_t
inline constexpr int kF32 = 0;
inline constexpr int kF16 = 2;
inline constexpr int kBF16 = 14;
inline constexpr int kF8E4M3 = 28;
inline constexpr int kComputeF32 = 68;    // cublasComputeType_t
inline constexpr int32_t kTranspose = 1;  // cublasOperation_t
// cublasLtMatmulDescAttributes_t
inline constexpr int kDescTransA = 3;
inline constexpr int kDescScalePointerA = 17;  // B follows
inline constexpr int kDescFastAccumulation = 25;
inline constexpr int kDescScaleModeA = 31;  // B follows
// cublasLtMatmulMatrixScale_t: fp32 factors of each row of op(A), or column of B; of 128 elements along K, in
// runs of those of all rows; of 128 x 128 elements, those of a row of blocks behind each other, rows of
// blocks a multiple of 4 apart. They begin at multiples of 16 bytes.
// source: https://docs.nvidia.com/cuda/cublas/ (narrow precision data types usage)
inline constexpr int32_t kScaleOuterVector = 3;
inline constexpr int32_t kScaleVector128 = 4;
inline constexpr int32_t kScaleBlock128 = 5;
// cublasLtMatmulPreferenceAttributes_t
inline constexpr int kMaxWorkspaceBytes = 1;
inline constexpr int kMinAlignmentA = 5;  // B, C and D follow

struct Algorithm {
  uint64_t data[8] = {};
};
struct HeuristicResult {
  Algorithm algorithm;
  size_t workspace = 0;
  int state = 0;
  float waves = 0;
  int reserved[4] = {};
};

// Every function returns a cublasStatus_t, 0 for success, where nothing else is said.
struct Table {
  size_t (*GetVersion)() = nullptr;
  const char* (*GetStatusString)(int) = nullptr;
  int (*Create)(Handle*) = nullptr;
  int (*Destroy)(Handle) = nullptr;
  int (*MatmulDescCreate)(MatmulDesc*, int compute_type, int scale_type) = nullptr;
  int (*MatmulDescDestroy)(MatmulDesc) = nullptr;
  int (*MatmulDescSetAttribute)(MatmulDesc, int attribute, const void* value, size_t bytes) = nullptr;
  int (*MatrixLayoutCreate)(Layout*, int type, uint64_t rows, uint64_t cols, int64_t leading) = nullptr;
  int (*MatrixLayoutDestroy)(Layout) = nullptr;
  int (*MatmulPreferenceCreate)(Preference*) = nullptr;
  int (*MatmulPreferenceDestroy)(Preference) = nullptr;
  int (*MatmulPreferenceSetAttribute)(Preference, int attribute, const void* value, size_t bytes) = nullptr;
  int (*MatmulAlgoGetHeuristic)(Handle, MatmulDesc, Layout a, Layout b, Layout c, Layout d, Preference,
                                int requested, HeuristicResult* results, int* count) = nullptr;
  int (*MatmulAlgoCheck)(Handle, MatmulDesc, Layout a, Layout b, Layout c, Layout d, const Algorithm*,
                         HeuristicResult*) = nullptr;
  int (*Matmul)(Handle, MatmulDesc, const void* alpha, const void* a, Layout, const void* b, Layout,
                const void* beta, const void* c, Layout, void* d, Layout, const Algorithm*, void* workspace,
                size_t workspace_bytes, void* stream) = nullptr;
};

// "13.1.0" of what GetVersion says.
std::string VersionName(size_t version);

// libcublasLt.so.13, looked for by the system, in $CUDA_HOME/lib64 and in /usr/local/cuda/lib64; it stays
// open. FailedPrecondition saying where it was looked for, or which function it lacks.
absl::StatusOr<Table> OpenLibrary();

}  // namespace phalanx::cuda::lt
