// gemm.cu on the emulator.
#include "kernels/cuda/gemm.cu"
