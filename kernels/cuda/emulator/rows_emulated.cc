// rows.cu on the emulator.
#include "kernels/cuda/rows.cu"
