// In place of kernels/cpu/cpu_features.cc: AMX is there where what its rung takes beside it is.
#include "kernels/cpu/cpu_features.h"

namespace phalanx {

std::string MissingForAvx2() { return __builtin_cpu_supports("avx2") ? "" : "AVX2"; }
std::string MissingForAvx512() { return __builtin_cpu_supports("avx512vnni") ? "" : "AVX512_VNNI"; }
std::string MissingForAvx512Bf16() { return __builtin_cpu_supports("avx512bf16") ? "" : "AVX512_BF16"; }
std::string MissingForAmx() { return MissingForAvx512Bf16(); }

}  // namespace phalanx
