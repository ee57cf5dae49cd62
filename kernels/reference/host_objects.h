// Memory and RoPE tables of the backends that run on the host.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "absl/status/statusor.h"
#include "kernels/ops.h"
#include "kernels/weight_memory.h"

namespace phalanx {

class HostMapping;

// Zeroed, 64-byte aligned; all but small ones ask for huge pages, which they may share. At least one byte can
// be addressed.
class HostBuffer : public Buffer {
 public:
  // InvalidArgument for a negative size, ResourceExhausted naming the size.
  static absl::StatusOr<std::unique_ptr<HostBuffer>> Create(int64_t bytes);
  // A piece of `memory` where that is given and has one; `packed` says what its piece does, else false.
  static absl::StatusOr<std::unique_ptr<HostBuffer>> Create(int64_t bytes, WeightMemory* memory,
                                                            bool* packed);
  ~HostBuffer() override;
  HostBuffer(const HostBuffer&) = delete;
  HostBuffer& operator=(const HostBuffer&) = delete;

  void* data() override { return data_; }
  int64_t bytes() const override { return bytes_; }

 private:
  HostBuffer() = default;

  void* data_ = nullptr;
  int64_t bytes_ = 0;
  bool borrowed_ = false;                 // data_ is another's
  std::shared_ptr<HostMapping> mapping_;  // null: data_ is from the allocator
};

class HostRopeTable : public RopeTable {
 public:
  HostRopeTable(const RopeConfig& config, int64_t num_positions);

  int rotary_dim() const override { return 2 * half_; }
  int64_t num_positions() const override { return num_positions_; }
  bool interleaved() const { return interleaved_; }
  // [rotary_dim / 2] each.
  const float* cos(int64_t position) const { return cos_.data() + position * half_; }
  const float* sin(int64_t position) const { return sin_.data() + position * half_; }

 private:
  int half_ = 0;
  int64_t num_positions_ = 0;
  bool interleaved_ = false;
  std::vector<float> cos_, sin_;
};

// Rotates the channels [0, table.rotary_dim()) at `x` in place, fp32.
void RotateHead(const HostRopeTable& table, int64_t position, float* x);

// Name of the host's processor, for people.
std::string HostCpuName();

}  // namespace phalanx
