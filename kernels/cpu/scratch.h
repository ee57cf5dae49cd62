// What the products of the CPU backend share.
#pragma once

#include <memory>

#include "absl/status/statusor.h"
#include "kernels/cpu/simd_kernels.h"
#include "kernels/reference/host_objects.h"

namespace phalanx {

// Memory that grows and is kept: steps allocate nothing once they have been as large as they get.
class Scratch {
 public:
  // At least `bytes`, 64-byte aligned; what was in it is lost when it grows.
  absl::StatusOr<void*> Get(int64_t bytes);

 private:
  std::unique_ptr<HostBuffer> buffer_;
};

// Where results go: those of subtree i start at out + i * tree_stride.
struct ProductOutput {
  float* out;
  int64_t stride;
  int64_t tree_stride;
  const float* bias;   // may be null
  bool gated = false;  // silu(g) * u of the halves g | u
  // With gated, of weights that are not quantised: not to `out` but as packed rows of packed_depth k for
  // another product. May be null.
  void* packed = nullptr;
  int64_t packed_depth = 0;
};

// The sum of a subtree's `count` shards at `stack`: product(i, sum) makes that of shard i, matrices of `size`
// floats; as many merges follow as i ends in ones (a binary counter of pending sums).
template <typename Product>
void SumShards(int count, float* stack, int64_t size, int64_t used, Product product) {
  int top = 0;
  for (int i = 0; i < count; ++i) {
    product(i, stack + top++ * size);
    for (int merged = i; (merged & 1) != 0; merged >>= 1) {
      --top;
      Avx2Add(stack + (top - 1) * size, stack + top * size, used);
    }
  }
}

}  // namespace phalanx
