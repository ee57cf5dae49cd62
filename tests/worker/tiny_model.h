// Small random llama models as GGUF files, with shapes that cut badly: heads that no number of ranks divides,
// FFN columns fewer than shards, a cut inside a quantisation block, every tensor type.
#pragma once

#include <unistd.h>

#include <cmath>
#include <cstdint>
#include <filesystem>
#include <memory>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "base/check.h"
#include "tests/base/gguf_writer.h"
#include "worker/checkpoint.h"

namespace phalanx {

struct TinyModelOptions {
  int layers = 2;
  int hidden = 96;
  int heads = 9;
  int kv_heads = 3;
  int key_dim = 16;
  int value_dim = 16;
  int ffn = 160;  // 5 units of 32: with 8 shards some hold nothing
  int vocab = 131;
  int context = 512;
  bool tied = true;
  bool qkv_bias = false;
  DType output_dtype = DType::kF16;  // of attn_output: heads * value_dim may be no multiple of a block
  uint32_t seed = 1;
};

struct TinyTensor {
  std::string name;
  DType dtype;
  std::vector<int64_t> dims;  // innermost first
  std::vector<float> values;
};

inline std::vector<TinyTensor> TinyTensors(const TinyModelOptions& o) {
  std::mt19937 random(o.seed);
  std::vector<TinyTensor> tensors;
  // Values of about one at the output of every product of normalised inputs.
  const auto matrix = [&](const std::string& name, DType dtype, int64_t rows, int64_t cols,
                          double scale = 1) {
    std::normal_distribution<float> normal(0,
                                           static_cast<float>(scale / std::sqrt(static_cast<double>(cols))));
    TinyTensor tensor{name, dtype, {cols, rows}, {}};
    for (int64_t i = 0; i < rows * cols; ++i) tensor.values.push_back(normal(random));
    tensors.push_back(std::move(tensor));
  };
  const auto vector = [&](const std::string& name, int64_t size, float mean) {
    std::normal_distribution<float> normal(mean, 0.2f);
    TinyTensor tensor{name, DType::kF32, {size}, {}};
    for (int64_t i = 0; i < size; ++i) tensor.values.push_back(normal(random));
    tensors.push_back(std::move(tensor));
  };
  matrix("token_embd.weight", DType::kQ8_0, o.vocab, o.hidden, 4);
  for (int i = 0; i < o.layers; ++i) {
    const std::string blk = absl::StrCat("blk.", i, ".");
    vector(blk + "attn_norm.weight", o.hidden, 1);
    matrix(blk + "attn_q.weight", DType::kQ4_1, o.heads * o.key_dim, o.hidden, 2);
    matrix(blk + "attn_k.weight", DType::kQ4_1, o.kv_heads * o.key_dim, o.hidden, 2);
    matrix(blk + "attn_v.weight", DType::kF16, o.kv_heads * o.value_dim, o.hidden);
    if (o.qkv_bias) {
      vector(blk + "attn_q.bias", o.heads * o.key_dim, 0);
      vector(blk + "attn_k.bias", o.kv_heads * o.key_dim, 0);
      vector(blk + "attn_v.bias", o.kv_heads * o.value_dim, 0);
    }
    matrix(blk + "attn_output.weight", o.output_dtype, o.hidden, o.heads * o.value_dim);
    vector(blk + "ffn_norm.weight", o.hidden, 1);
    matrix(blk + "ffn_gate.weight", DType::kQ4_0, o.ffn, o.hidden);
    matrix(blk + "ffn_up.weight", DType::kQ8_0, o.ffn, o.hidden);
    matrix(blk + "ffn_down.weight", i % 2 == 0 ? DType::kQ4_1 : DType::kBF16, o.hidden, o.ffn);
  }
  vector("output_norm.weight", o.hidden, 1);
  if (!o.tied) matrix("output.weight", DType::kF32, o.vocab, o.hidden, 2);
  return tensors;
}

// Writes a model file of these tensors.
inline void WriteTinyModel(const TinyModelOptions& o, const std::vector<TinyTensor>& tensors,
                           const std::string& name, const std::string& path) {
  GgufWriter writer;
  writer.SetString("general.architecture", "llama");
  writer.SetString("general.name", name);
  writer.SetU32("llama.block_count", o.layers);
  writer.SetU32("llama.context_length", o.context);
  writer.SetU32("llama.embedding_length", o.hidden);
  writer.SetU32("llama.feed_forward_length", o.ffn);
  writer.SetU32("llama.attention.head_count", o.heads);
  writer.SetU32("llama.attention.head_count_kv", o.kv_heads);
  writer.SetU32("llama.attention.key_length", o.key_dim);
  writer.SetU32("llama.attention.value_length", o.value_dim);
  writer.SetU32("llama.rope.dimension_count", o.key_dim);
  writer.SetF32("llama.rope.freq_base", 10000);
  writer.SetF32("llama.attention.layer_norm_rms_epsilon", 1e-5f);
  for (const TinyTensor& t : tensors) writer.AddTensor(t.name, t.dtype, t.dims, t.values);
  PHX_CHECK(writer.Write(path), path);
}

// Writes one into the folder for temporary files and opens it.
inline std::unique_ptr<Checkpoint> OpenTinyModel(const TinyModelOptions& o,
                                                 const std::vector<TinyTensor>& tensors,
                                                 const std::string& name) {
  const std::string path =
      absl::StrCat(std::filesystem::temp_directory_path().string(), "/", name, ".", getpid(), ".gguf");
  WriteTinyModel(o, tensors, name, path);
  absl::StatusOr<std::unique_ptr<Checkpoint>> file = Checkpoint::Open(path);
  unlink(path.c_str());  // the mapping stays
  PHX_CHECK(file.ok(), file.status().ToString());
  return *std::move(file);
}

inline std::unique_ptr<Checkpoint> OpenTinyModel(const TinyModelOptions& o,
                                                 const std::string& name = "tiny") {
  return OpenTinyModel(o, TinyTensors(o), name);
}

}  // namespace phalanx
