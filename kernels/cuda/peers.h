// What exchanges between devices need of the machine besides Runtime: the CUDA runtime's and the emulator's.
#pragma once

#include <cstdint>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace phalanx::cuda {

// Thread safety: any thread.
class PeerServices {
 public:
  virtual ~PeerServices() = default;
  // Of this device; ranks with equal names share it.
  virtual std::string device_name() const = 0;

  // Host memory, zeroed, that kernels read and write at the same address.
  virtual absl::StatusOr<void*> AllocateMapped(int64_t bytes) = 0;
  virtual void FreeMapped(void* data) = 0;

  // Device memory, zeroed, that peers can map. It is given back when nobody has it mapped any more where this
  // process can know; of another process the caller must know it.
  virtual absl::StatusOr<void*> AllocateShared(int64_t bytes) = 0;
  virtual void FreeShared(void* data) = 0;
  // A handle of at most kHandleBytes, which peers Import. FailedPrecondition where they cannot.
  static constexpr int64_t kHandleBytes = 128;
  virtual absl::StatusOr<std::string> Export(void* data) = 0;
  virtual absl::StatusOr<void*> Import(const std::string& handle) = 0;
  virtual void CloseImport(void* data) = 0;

  // Events: places in a stream. Follow makes what is enqueued on `stream` from now on wait for one.
  virtual absl::StatusOr<void*> CreateEvent() = 0;
  virtual void DestroyEvent(void* event) = 0;
  virtual absl::Status Record(void* event, void* stream) = 0;
  virtual absl::Status Follow(void* event, void* stream) = 0;
  virtual absl::StatusOr<bool> IsDone(void* event) = 0;
};

}  // namespace phalanx::cuda
