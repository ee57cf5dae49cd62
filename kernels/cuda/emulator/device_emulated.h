// device.h on the emulator.
#pragma once

#include <algorithm>
#include <bit>
#include <chrono>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <thread>

#include "kernels/cuda/emulator/simt.h"
#include "kernels/cuda/half.h"
#include "kernels/fp8.h"
#include "kernels/numeric.h"

#define PHX_DEVICE inline
#define PHX_GLOBAL inline
#define PHX_BOUNDS(threads, blocks)
#define PHX_UNROLL
#define PHX_UNROLL_BY(n)
#define PHX_FAULT(name) (simt::fault() == simt::Fault::name)
#define PHX_PARAMETER

namespace phalanx::cuda {

inline int ThreadIndex() { return static_cast<int>(simt::ThreadIndex()); }
inline int BlockSize() { return static_cast<int>(simt::BlockSize().x); }
inline int BlockX() { return static_cast<int>(simt::BlockIndex().x); }
inline int BlockY() { return static_cast<int>(simt::BlockIndex().y); }
inline int BlockZ() { return static_cast<int>(simt::BlockIndex().z); }
inline int GridX() { return static_cast<int>(simt::GridSize().x); }
inline int GridY() { return static_cast<int>(simt::GridSize().y); }
inline char* SharedMemory() { return simt::SharedMemory(); }
inline void WaitForPrevious() { simt::WaitForPrevious(); }
inline void SyncThreads() { simt::SyncThreads(); }
inline void SyncWarp() { simt::SyncWarp(); }

template <typename T>
struct ShuffleOperand {
  T value;
  int lane;
  T result;
};
template <typename T>
T ShuffleFrom(T v, int lane) {
  ShuffleOperand<T> operand = {v, lane & 31, T()};
  simt::WarpCollective(
      [](void* const* operands) {
        for (int i = 0; i < simt::kWarp; ++i) {
          auto* own = static_cast<ShuffleOperand<T>*>(operands[i]);
          own->result = static_cast<const ShuffleOperand<T>*>(operands[own->lane])->value;
        }
      },
      &operand);
  return operand.result;
}
template <typename T>
T ShuffleXor(T v, int mask) {
  return ShuffleFrom(v, (ThreadIndex() ^ mask) & 31);
}
template <typename T>
T Shuffle(T v, int lane) {
  return ShuffleFrom(v, lane);
}
struct BallotOperand {
  bool value;
  uint32_t result;
};
inline uint32_t Ballot(bool v) {
  BallotOperand operand = {v, 0};
  simt::WarpCollective(
      [](void* const* operands) {
        uint32_t all = 0;
        for (int i = 0; i < simt::kWarp; ++i) {
          all |= uint32_t{static_cast<const BallotOperand*>(operands[i])->value} << i;
        }
        for (int i = 0; i < simt::kWarp; ++i) static_cast<BallotOperand*>(operands[i])->result = all;
      },
      &operand);
  return operand.result;
}
inline int PopCount(uint32_t v) { return std::popcount(v); }

inline float Fma(float a, float b, float c) { return std::fmaf(a, b, c); }
inline float Mul(float a, float b) { return a * b; }
inline float Add(float a, float b) { return a + b; }
inline float Sub(float a, float b) { return a - b; }
inline float Div(float a, float b) { return a / b; }
inline float Sqrt(float a) { return std::sqrt(a); }
inline float Max(float a, float b) { return std::fmax(a, b); }
inline double AddDouble(double a, double b) { return a + b; }
inline double MulDouble(double a, double b) { return a * b; }
inline double LogDouble(double a) { return std::log(a); }
inline float Exp2(float a) { return std::exp2(a); }
inline float Infinity() { return std::numeric_limits<float>::infinity(); }
inline float QuietNan() { return std::numeric_limits<float>::quiet_NaN(); }
inline uint32_t FloatBits(float v) { return std::bit_cast<uint32_t>(v); }
inline float FloatFromBits(uint32_t v) { return std::bit_cast<float>(v); }

template <bool kHalf>
float ToFloat(uint16_t v) {
  return kHalf ? FloatFromF16(v) : FloatFromBf16(v);
}
template <bool kHalf>
uint16_t FromFloat(float v) {
  return kHalf ? HalfFromFloat(v) : Bf16FromFloat(v);
}

template <bool kHalf>
uint32_t Pack2(float low, float high) {
  return static_cast<uint32_t>(FromFloat<kHalf>(low)) | static_cast<uint32_t>(FromFloat<kHalf>(high)) << 16;
}

inline uint32_t Pack2Finite(float low, float high) {
  const auto finite = [](float v) { return std::isnan(v) ? v : std::clamp(v, -65504.0f, 65504.0f); };
  return Pack2<true>(finite(low), finite(high));
}

// Exact sums that fp32 holds are rounded once; others twice, which no kernel has.
template <bool kHalf>
uint32_t Fma2(uint32_t a, uint32_t b, uint32_t c) {
  const auto of = [](uint32_t v, int half) {
    return ToFloat<kHalf>(static_cast<uint16_t>(v >> (16 * half)));
  };
  return Pack2<kHalf>(Fma(of(a, 0), of(b, 0), of(c, 0)), Fma(of(a, 1), of(b, 1), of(c, 1)));
}

inline uint32_t PackE4m3(float v0, float v1, float v2, float v3) {
  uint32_t codes = 0;
  for (const float v : {v3, v2, v1, v0}) codes = codes << 8 | E4m3FromFloatBits(FloatBits(v));
  return codes;
}

struct MmaOperand {
  float* d;
  const uint32_t* a;
  uint32_t b0, b1;
};
void RunMmaHalf(void* const* operands);
void RunMmaBf16(void* const* operands);
template <bool kHalf>
void Mma(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  MmaOperand operand = {d, a, b0, b1};
  simt::WarpCollective(kHalf ? RunMmaHalf : RunMmaBf16, &operand);
}

struct LdMatrixOperand {
  uint32_t* r;
  const void* row;
};
void RunLdMatrix(void* const* operands);
void RunLdMatrixTrans(void* const* operands);
inline void LdMatrix(uint32_t (&r)[4], const void* row) {
  LdMatrixOperand operand = {r, row};
  simt::CheckShared(row, 16, "ldmatrix from an address outside of shared memory or not aligned to 16");
  simt::WarpCollective(RunLdMatrix, &operand);
}
inline void LdMatrixTrans(uint32_t (&r)[4], const void* row) {
  LdMatrixOperand operand = {r, row};
  simt::CheckShared(row, 16, "ldmatrix from an address outside of shared memory or not aligned to 16");
  simt::WarpCollective(RunLdMatrixTrans, &operand);
}

inline void CopyAsync(void* shared, const void* global, int bytes) { simt::CopyAsync(shared, global, bytes); }
inline void CommitCopies() { simt::CommitCopies(); }
template <int kPending>
void WaitCopies() {
  simt::WaitCopies(kPending);
}

inline int AtomicAdd(int* to, int v) {
  const int old = *to;
  *to += v;
  return old;
}
inline void AtomicAdd(double* to, double v) { *to += v; }

inline uint32_t LoadAcquireSystem(const uint32_t* from) { return __atomic_load_n(from, __ATOMIC_ACQUIRE); }
// What comes behind it comes late.
inline void StoreReleaseSystem(uint32_t* to, uint32_t v) {
  __atomic_store_n(to, v, __ATOMIC_RELEASE);
  std::this_thread::yield();
}
inline uint64_t GlobalNanoseconds() {
  return static_cast<uint64_t>(std::chrono::steady_clock::now().time_since_epoch() /
                               std::chrono::nanoseconds(1));
}
// The peers' kernels run on other threads of the host.
inline void SpinPause() { std::this_thread::yield(); }

struct alignas(16) Quad {
  uint32_t v[4];
};
inline Quad LoadQuad(const void* p) { return *static_cast<const Quad*>(p); }
inline void StoreQuad(void* p, const Quad& q) { *static_cast<Quad*>(p) = q; }

using GridDim = simt::Dim3;
template <typename... Params, typename... Args>
int LaunchKernel(const char* name, void (*kernel)(Params...), GridDim grid, int threads, int shared_bytes,
                 void* stream, Args... args) {
  static_cast<simt::Stream*>(stream)->Enqueue([=] {
    simt::Launch(name, grid, {static_cast<unsigned>(threads), 1, 1}, static_cast<size_t>(shared_bytes),
                 [&] { kernel(args...); });
  });
  return 0;
}

}  // namespace phalanx::cuda
