// quant_gemm.cu on the emulator.
#include "kernels/cuda/quant_gemm.cu"
