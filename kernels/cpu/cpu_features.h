// What this processor and this operating system can run.
#pragma once

#include <string>

namespace phalanx {

// Empty when the rung ("avx2", "avx512", "avx512_bf16", "amx") can run here; else the feature that is
// missing, for people.
std::string MissingForAvx2();
std::string MissingForAvx512();
std::string MissingForAvx512Bf16();
// Asks the kernel for the permission to use AMX's tiles, which threads made later inherit.
std::string MissingForAmx();

}  // namespace phalanx
