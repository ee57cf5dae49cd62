// rope_store.cu on the emulator.
#include "kernels/cuda/rope_store.cu"
