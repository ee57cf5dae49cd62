// hopper_device.h on the emulator. The copy engine copies when it is asked; wgmma multiplies as late as it
// may, when its group is waited for, so that memory which is filled again too early shows.
#pragma once

#include <cstdint>

#include "kernels/cuda/emulator/device_emulated.h"
#include "kernels/cuda/hopper_layout.h"

#define PHX_GRID_CONSTANT
#define PHX_HOPPER 1

namespace phalanx::cuda {

struct TensorMap {
  const char* data = nullptr;
  uint64_t dims[3] = {1, 1, 1};
  uint64_t strides[2] = {0, 0};  // bytes
  uint32_t box[3] = {1, 1, 1};
};

// 0, or cudaErrorInvalidValue for what the driver would refuse.
int CheckTensorMap(const TensorMap& map, int rank);
template <int kRank>
int EncodeTensorMap(TensorMap* map, const void* data, const uint64_t (&dims)[kRank],
                    const uint64_t (&strides)[kRank - 1], const uint32_t (&box)[kRank]) {
  *map = TensorMap();
  map->data = static_cast<const char*>(data);
  for (int i = 0; i < kRank; ++i) map->dims[i] = dims[i];
  for (int i = 0; i < kRank - 1; ++i) map->strides[i] = strides[i];
  for (int i = 0; i < kRank; ++i) map->box[i] = box[i];
  return CheckTensorMap(*map, kRank);
}

// As a device has it: shared memory begins at 1 KiB of its window.
inline uint32_t SharedAddress(const void* p) {
  return static_cast<uint32_t>(static_cast<const char*>(p) - simt::SharedMemory()) + 1024;
}

void BarrierInit(uint64_t* barrier, int arrivals);
inline void BarrierFence() {}
void BarrierArrive(uint64_t* barrier);
void BarrierExpect(uint64_t* barrier, int bytes);
void BarrierWait(uint64_t* barrier, int parity);
void CopyBox3(void* shared, const TensorMap* map, uint64_t* barrier, int x, int y, int z);
inline void CopyBox2(void* shared, const TensorMap* map, uint64_t* barrier, int x, int y) {
  CopyBox3(shared, map, barrier, x, y, 0);
}
inline void PrefetchMap(const TensorMap*) {}
inline void FenceAsync() {}
void SyncGroup(int id, int threads);
template <int kRegisters>
void GiveRegisters() {}
template <int kRegisters>
void TakeRegisters() {}
inline void WgmmaFence() {}
void WgmmaCommit();
void WgmmaWaitFor(int pending);
template <int kPending>
void WgmmaWait() {
  WgmmaWaitFor(kPending);
}
template <int kCount>
void WgmmaHold(float (&)[kCount]) {}

struct WgmmaOperand {
  float* d = nullptr;
  uint64_t a = 0, b = 0;
  uint32_t registers[4] = {};  // A, where from_registers
  bool from_registers = false, columns = false, add = false, half = false;
  int n = 0;
};
void RunWgmma(WgmmaOperand* operand);

template <int kN, bool kHalf>
void Wgmma(float (&d)[kN / 2], uint64_t a, uint64_t b, bool add) {
  WgmmaOperand operand;
  operand.d = d;
  operand.a = a;
  operand.b = b;
  operand.add = add;
  operand.half = kHalf;
  operand.n = kN;
  RunWgmma(&operand);
}
template <int kN, bool kHalf>
void WgmmaRegisters(float (&d)[kN / 2], const uint32_t (&a)[4], uint64_t b, bool add) {
  WgmmaOperand operand;
  operand.d = d;
  for (int i = 0; i < 4; ++i) operand.registers[i] = a[i];
  operand.b = b;
  operand.from_registers = operand.columns = true;
  operand.add = add;
  operand.half = kHalf;
  operand.n = kN;
  RunWgmma(&operand);
}

}  // namespace phalanx::cuda
