// device.h on a GPU: compiled by nvcc only, sm_80 and later.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <cstdint>

#include "kernels/cuda/launch.h"
#include "kernels/fp8.h"

#define PHX_DEVICE __device__ __forceinline__
#define PHX_GLOBAL __global__
#define PHX_BOUNDS(threads, blocks) __launch_bounds__(threads, blocks)
#define PHX_UNROLL _Pragma("unroll")
#define PHX_PRAGMA(text) _Pragma(#text)
#define PHX_UNROLL_BY(n) PHX_PRAGMA(unroll n)
#define PHX_FAULT(fault) false
// Before a kernel's parameter that is read by an index: it stays where it was put.
#define PHX_PARAMETER __grid_constant__

namespace phalanx::cuda {

PHX_DEVICE int ThreadIndex() { return static_cast<int>(threadIdx.x); }
PHX_DEVICE int BlockSize() { return static_cast<int>(blockDim.x); }
PHX_DEVICE int BlockX() { return static_cast<int>(blockIdx.x); }
PHX_DEVICE int BlockY() { return static_cast<int>(blockIdx.y); }
PHX_DEVICE int BlockZ() { return static_cast<int>(blockIdx.z); }
PHX_DEVICE int GridX() { return static_cast<int>(gridDim.x); }
PHX_DEVICE int GridY() { return static_cast<int>(gridDim.y); }

PHX_DEVICE char* SharedMemory() {
  extern __shared__ __align__(128) char phalanx_shared[];
  return phalanx_shared;
}
PHX_DEVICE void WaitForPrevious() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
  asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}
PHX_DEVICE void SyncThreads() { __syncthreads(); }
PHX_DEVICE void SyncWarp() { __syncwarp(); }

PHX_DEVICE float ShuffleXor(float v, int mask) { return __shfl_xor_sync(0xffffffffu, v, mask); }
PHX_DEVICE int ShuffleXor(int v, int mask) { return __shfl_xor_sync(0xffffffffu, v, mask); }
PHX_DEVICE double ShuffleXor(double v, int mask) { return __shfl_xor_sync(0xffffffffu, v, mask); }
PHX_DEVICE uint64_t ShuffleXor(uint64_t v, int mask) {
  return __shfl_xor_sync(0xffffffffu, static_cast<unsigned long long>(v), mask);
}
PHX_DEVICE int Shuffle(int v, int lane) { return __shfl_sync(0xffffffffu, v, lane); }
PHX_DEVICE float Shuffle(float v, int lane) { return __shfl_sync(0xffffffffu, v, lane); }
PHX_DEVICE uint32_t Ballot(bool v) { return __ballot_sync(0xffffffffu, v); }
PHX_DEVICE int PopCount(uint32_t v) { return __popc(v); }

PHX_DEVICE float Fma(float a, float b, float c) { return __fmaf_rn(a, b, c); }
PHX_DEVICE float Mul(float a, float b) { return __fmul_rn(a, b); }
PHX_DEVICE float Add(float a, float b) { return __fadd_rn(a, b); }
PHX_DEVICE float Sub(float a, float b) { return __fsub_rn(a, b); }
PHX_DEVICE float Div(float a, float b) { return __fdiv_rn(a, b); }
PHX_DEVICE float Sqrt(float a) { return __fsqrt_rn(a); }
PHX_DEVICE float Max(float a, float b) { return fmaxf(a, b); }
PHX_DEVICE double AddDouble(double a, double b) { return __dadd_rn(a, b); }
PHX_DEVICE double MulDouble(double a, double b) { return __dmul_rn(a, b); }
PHX_DEVICE double LogDouble(double a) { return log(a); }
// 2^a to about 2 ulp; 2^-inf is 0.
PHX_DEVICE float Exp2(float a) {
  float r;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(r) : "f"(a));
  return r;
}
PHX_DEVICE float Infinity() { return __int_as_float(0x7f800000); }
PHX_DEVICE float QuietNan() { return __int_as_float(0x7fc00000); }
PHX_DEVICE uint32_t FloatBits(float v) { return __float_as_uint(v); }
PHX_DEVICE float FloatFromBits(uint32_t v) { return __uint_as_float(v); }

template <bool kHalf>
PHX_DEVICE float ToFloat(uint16_t v) {
  if constexpr (kHalf) return __half2float(__ushort_as_half(v));
  return __uint_as_float(static_cast<uint32_t>(v) << 16);
}
template <bool kHalf>
PHX_DEVICE uint16_t FromFloat(float v) {
  if constexpr (kHalf) return __half_as_ushort(__float2half_rn(v));
  return __bfloat16_as_ushort(__float2bfloat16_rn(v));
}

// Two 16-bit values in a register, the first in the low half.
template <bool kHalf>
PHX_DEVICE uint32_t Pack2(float low, float high) {
  uint32_t r;
  if constexpr (kHalf) {
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(r) : "f"(high), "f"(low));
  } else {
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(r) : "f"(high), "f"(low));
  }
  return r;
}

// Two fp16 values likewise, what is beyond the largest being that; a NaN stays one.
PHX_DEVICE uint32_t Pack2Finite(float low, float high) {
  uint32_t r;
  asm("cvt.rn.satfinite.f16x2.f32 %0, %1, %2;" : "=r"(r) : "f"(high), "f"(low));
  return r;
}

// a * b + c of both halves, rounded once each.
template <bool kHalf>
PHX_DEVICE uint32_t Fma2(uint32_t a, uint32_t b, uint32_t c) {
  uint32_t r;
  if constexpr (kHalf) {
    asm("fma.rn.f16x2 %0, %1, %2, %3;" : "=r"(r) : "r"(a), "r"(b), "r"(c));
  } else {
    asm("fma.rn.bf16x2 %0, %1, %2, %3;" : "=r"(r) : "r"(a), "r"(b), "r"(c));
  }
  return r;
}

// Four numbers as e4m3 (kernels/fp8.h), the first in the lowest byte; of a NaN any of its codes.
PHX_DEVICE uint32_t PackE4m3(float v0, float v1, float v2, float v3) {
#if __CUDA_ARCH__ >= 890
  uint16_t low, high;
  asm("cvt.rn.satfinite.e4m3x2.f32 %0, %1, %2;" : "=h"(low) : "f"(v1), "f"(v0));
  asm("cvt.rn.satfinite.e4m3x2.f32 %0, %1, %2;" : "=h"(high) : "f"(v3), "f"(v2));
  return low | static_cast<uint32_t>(high) << 16;
#else
  return static_cast<uint32_t>(E4m3FromFloatBits(FloatBits(v0))) |
         static_cast<uint32_t>(E4m3FromFloatBits(FloatBits(v1))) << 8 |
         static_cast<uint32_t>(E4m3FromFloatBits(FloatBits(v2))) << 16 |
         static_cast<uint32_t>(E4m3FromFloatBits(FloatBits(v3))) << 24;
#endif
}

PHX_DEVICE uint32_t SharedAddress(const void* p) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(p));
}

// D += A B, all 16 bits wide but for the fp32 accumulator. Lane l holds, with g = l / 4 and t = l % 4: of A
// [16, 16] the pairs (g, 2t), (g + 8, 2t), (g, 2t + 8), (g + 8, 2t + 8); of B [16, 8] the pairs of rows 2t
// and 2t + 8 of column g; of D [16, 8] the elements (g, 2t), (g, 2t + 1), (g + 8, 2t), (g + 8, 2t + 1).
template <bool kHalf>
PHX_DEVICE void Mma(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  if constexpr (kHalf) {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3},{%4,%5,%6,%7},{%8,%9},{%0,%1,%2,%3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
  } else {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 "
        "{%0,%1,%2,%3},{%4,%5,%6,%7},{%8,%9},{%0,%1,%2,%3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
  }
}
// Four 8x8 matrices of 16 bits; lane l gives the address of row l % 8 of matrix l / 8. Lane l gets the pair
// 2(l % 4) of row l / 4 of each; of the transposed matrices with LdMatrixTrans.
PHX_DEVICE void LdMatrix(uint32_t (&r)[4], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(SharedAddress(row))
               : "memory");
}
PHX_DEVICE void LdMatrixTrans(uint32_t (&r)[4], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(SharedAddress(row))
               : "memory");
}

// 16 bytes to shared memory past the L1 cache; of the source `bytes` (0 to 16) are read, the rest is zero.
PHX_DEVICE void CopyAsync(void* shared, const void* global, int bytes) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(SharedAddress(shared)), "l"(global),
               "r"(bytes)
               : "memory");
}
PHX_DEVICE void CommitCopies() { asm volatile("cp.async.commit_group;" ::: "memory"); }
template <int kPending>
PHX_DEVICE void WaitCopies() {
  asm volatile("cp.async.wait_group %0;" ::"n"(kPending) : "memory");
}

// To shared memory.
PHX_DEVICE int AtomicAdd(int* to, int v) { return atomicAdd(to, v); }
PHX_DEVICE void AtomicAdd(double* to, double v) { atomicAdd(to, v); }

// Between devices and the host: what was written before the release, by this device's earlier kernels too, is
// seen behind the acquire.
PHX_DEVICE uint32_t LoadAcquireSystem(const uint32_t* from) {
  uint32_t v;
  asm volatile("ld.acquire.sys.global.u32 %0, [%1];" : "=r"(v) : "l"(from) : "memory");
  return v;
}
PHX_DEVICE void StoreReleaseSystem(uint32_t* to, uint32_t v) {
  asm volatile("st.release.sys.global.u32 [%0], %1;" ::"l"(to), "r"(v) : "memory");
}
PHX_DEVICE uint64_t GlobalNanoseconds() {
  uint64_t v;
  asm volatile("mov.u64 %0, %%globaltimer;" : "=l"(v));
  return v;
}
PHX_DEVICE void SpinPause() { __nanosleep(20); }

struct alignas(16) Quad {
  uint32_t v[4];
};
PHX_DEVICE Quad LoadQuad(const void* p) {
  const uint4 v = *static_cast<const uint4*>(p);
  return {{v.x, v.y, v.z, v.w}};
}
PHX_DEVICE void StoreQuad(void* p, const Quad& q) {
  *static_cast<uint4*>(p) = make_uint4(q.v[0], q.v[1], q.v[2], q.v[3]);
}

// Enqueues a kernel; the result is a cudaError_t.
template <typename... Params, typename... Args>
int LaunchKernel(const char*, void (*kernel)(Params...), dim3 grid, int threads, int shared_bytes,
                 void* stream, Args... args) {
  if (shared_bytes > 48 * 1024) {
    const cudaError_t set =
        cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, shared_bytes);
    if (set != cudaSuccess) return static_cast<int>(set);
  }
  cudaLaunchAttribute dependent = {};
  dependent.id = cudaLaunchAttributeProgrammaticStreamSerialization;
  dependent.val.programmaticStreamSerializationAllowed = 1;
  cudaLaunchConfig_t config = {};
  config.gridDim = grid;
  config.blockDim = dim3(static_cast<unsigned>(threads), 1, 1);
  config.dynamicSmemBytes = static_cast<size_t>(shared_bytes);
  config.stream = static_cast<cudaStream_t>(stream);
  config.attrs = &dependent;
  config.numAttrs = dependent_launch ? 1 : 0;
  return static_cast<int>(cudaLaunchKernelEx(&config, kernel, args...));
}
using GridDim = dim3;

}  // namespace phalanx::cuda
