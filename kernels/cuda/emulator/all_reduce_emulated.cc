// all_reduce.cu on the emulator.
#include "kernels/cuda/all_reduce.cu"
