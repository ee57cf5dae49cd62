// experts.cu on the emulator.
#include "kernels/cuda/experts.cu"
