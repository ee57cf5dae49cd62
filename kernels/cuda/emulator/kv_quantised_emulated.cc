// kv_quantised.cu on the emulator.
#include "kernels/cuda/kv_quantised.cu"
