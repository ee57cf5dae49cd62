// gemm_fp8.cu on the emulator.
#include "kernels/cuda/gemm_fp8.cu"
