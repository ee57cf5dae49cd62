// sample.cu on the emulator.
#include "kernels/cuda/sample.cu"
