// attention.cu on the emulator.
#include "kernels/cuda/attention.cu"
