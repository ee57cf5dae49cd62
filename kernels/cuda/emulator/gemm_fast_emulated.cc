// gemm_fast.cu on the emulator.
#include "kernels/cuda/gemm_fast.cu"
