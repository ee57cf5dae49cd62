// gemm_wgmma.cu and attention_wgmma.cu on the emulator.
#include "kernels/cuda/attention_wgmma.cu"
#include "kernels/cuda/gemm_wgmma.cu"
