#include "kernels/cpu/cpu_features.h"

#if defined(__x86_64__)
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cerrno>
#include <cstdint>
#include <cstring>
#endif

namespace phalanx {

#if defined(__x86_64__)
namespace {

struct Cpuid {
  uint32_t a = 0, b = 0, c = 0, d = 0;
};

Cpuid Leaf(uint32_t leaf, uint32_t subleaf) {
  Cpuid r;
  if (!__get_cpuid_count(leaf, subleaf, &r.a, &r.b, &r.c, &r.d)) return {};
  return r;
}

// The register states that the operating system saves (XCR0); 0 without XSAVE.
uint64_t OsStates() {
  if ((Leaf(1, 0).c >> 27 & 1) == 0) return 0;
  uint32_t low, high;
  __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  return uint64_t{high} << 32 | low;
}

struct Need {
  const char* name;
  bool present;
};

template <size_t N>
std::string FirstMissing(const Need (&needs)[N]) {
  for (const Need& need : needs) {
    if (!need.present) return need.name;
  }
  return "";
}

}  // namespace

std::string MissingForAvx2() {
  const Cpuid one = Leaf(1, 0), seven = Leaf(7, 0);
  const Need needs[] = {
      {"operating system support of AVX state", (OsStates() & 0x6) == 0x6},
      {"AVX", (one.c >> 28 & 1) != 0},
      {"FMA", (one.c >> 12 & 1) != 0},
      {"F16C", (one.c >> 29 & 1) != 0},
      {"AVX2", (seven.b >> 5 & 1) != 0},
  };
  return FirstMissing(needs);
}

std::string MissingForAvx512() {
  if (std::string missing = MissingForAvx2(); !missing.empty()) return missing;
  const Cpuid seven = Leaf(7, 0);
  const Need needs[] = {
      {"AVX512F", (seven.b >> 16 & 1) != 0},
      {"AVX512DQ", (seven.b >> 17 & 1) != 0},
      {"AVX512BW", (seven.b >> 30 & 1) != 0},
      {"AVX512VL", (seven.b >> 31 & 1) != 0},
      {"AVX512_VNNI", (seven.c >> 11 & 1) != 0},
      {"operating system support of AVX-512 state", (OsStates() & 0xe6) == 0xe6},
  };
  return FirstMissing(needs);
}

std::string MissingForAvx512Bf16() {
  if (std::string missing = MissingForAvx512(); !missing.empty()) return missing;
  return (Leaf(7, 1).a >> 5 & 1) != 0 ? "" : "AVX512_BF16";
}

std::string MissingForAmx() {
  if (std::string missing = MissingForAvx512Bf16(); !missing.empty()) return missing;
  const Cpuid seven = Leaf(7, 0);
  const Need needs[] = {
      {"AMX-TILE", (seven.d >> 24 & 1) != 0},
      {"AMX-BF16", (seven.d >> 22 & 1) != 0},
      {"AMX-INT8", (seven.d >> 25 & 1) != 0},
      {"operating system support of AMX tile state", (OsStates() & 0x60000) == 0x60000},
  };
  if (std::string missing = FirstMissing(needs); !missing.empty()) return missing;
  constexpr int kArchReqXcompPerm = 0x1023;  // asm/prctl.h
  constexpr int kTileData = 18;
  if (syscall(SYS_arch_prctl, kArchReqXcompPerm, kTileData) != 0) {
    return std::string("permission to use AMX tile data (arch_prctl: ") + std::strerror(errno) + ")";
  }
  return "";
}

#else

std::string MissingForAvx2() { return "AVX2: this is no x86-64 processor"; }
std::string MissingForAvx512() { return "AVX512F: this is no x86-64 processor"; }
std::string MissingForAvx512Bf16() { return "AVX512_BF16: this is no x86-64 processor"; }
std::string MissingForAmx() { return "AMX-TILE: this is no x86-64 processor"; }

#endif

}  // namespace phalanx
