// What the targets do with a checkpoint that opened.
#pragma once

#include <cstdint>
#include <string>

#include "worker/checkpoint.h"

namespace phalanx {

// Reads the ends of every tensor and what identifies the weights, and asks for tensors by their names.
inline void ReadAll(const Checkpoint& checkpoint) {
  uint64_t read = checkpoint.ContentHash() + checkpoint.FilesIdentity().size();
  for (const StoredTensor& tensor : checkpoint.tensors()) {
    if (tensor.bytes > 0) read += tensor.data[0] ^ tensor.data[tensor.bytes - 1];
    read += checkpoint.IsUnused(tensor.name) + checkpoint.Locate(tensor.name).name.size();
  }
  for (const char* name : {"model.embed_tokens.weight", "model.layers.1.mlp.experts.3.up_proj.weight"}) {
    read += checkpoint.FindTensor(checkpoint.Locate(name).name) != nullptr;
  }
  asm volatile("" : : "r"(read));  // it is read, though nobody wants it
}

}  // namespace phalanx
