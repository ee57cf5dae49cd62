// Where a host backend's packed weights lie, when not in memory of its own.
#pragma once

#include <cstdint>

namespace phalanx {

// Pieces are taken in the order in which weights are packed, which is the same wherever the same weights are
// packed the same way. Thread safety: one thread at a time.
class WeightMemory {
 public:
  struct Piece {
    void* data = nullptr;  // null: none to be had; the weight is to lie in memory of its own
    bool packed = false;   // it holds the weight already, and is not to be written
  };

  virtual ~WeightMemory() = default;
  // `bytes` at an alignment of 64, zeros where it is not packed, valid as long as this object. As many as 64
  // bytes beyond may be read.
  virtual Piece Take(int64_t bytes) = 0;
};

}  // namespace phalanx
