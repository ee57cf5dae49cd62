// The numbers that define a model's shape, read from the model's own file. Both sides need them: the
// coordinator for limits and memory, the worker for weights and kernels.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "base/gguf.h"

namespace phalanx {

struct RopeConfig {
  double theta = 10000;
  int rotary_dim = 0;  // channels of a head that rotate; the rest pass through
  // Pairs (2i, 2i+1) instead of (i, i + rotary_dim/2). No key of a file: the architecture's model sets it.
  bool interleaved = false;
  // Per-frequency divisors [rotary_dim / 2] of the table; empty means 1.
  std::vector<float> freq_factors;
  float attention_factor = 1.0f;  // multiplies cos and sin
};

struct ModelConfig {
  std::string architecture;  // "llama": a name of base/architectures.h
  std::string name;          // general.name, for people
  int num_layers = 0;
  int hidden_size = 0;
  int num_heads = 0;  // query heads
  int num_kv_heads = 0;
  int key_dim = 0;    // channels of a key (and query) head
  int value_dim = 0;  // channels of a value head
  int ffn_size = 0;
  int vocab_size = 0;
  int context_length = 0;  // positions the model was made for
  float rms_eps = 1e-5f;
  bool tied_embeddings = false;
  // RoPE tables by mode; a sequence's mode is an index here, fixed before its first token.
  std::vector<RopeConfig> rope;
};

// Unimplemented for an architecture not in the table of base/architectures.h and for a key that changes the
// arithmetic in a way not supported; NotFound / InvalidArgument for missing or impossible keys. Each names
// what it is about.
absl::StatusOr<ModelConfig> ModelConfigFromGguf(const GgufFile& file);

// Unimplemented naming the architecture and those supported.
absl::Status UnsupportedArchitecture(const std::string& architecture);

}  // namespace phalanx
