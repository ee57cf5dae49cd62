// A safetensors file, alone and as the weights of a directory.
#include "base/safetensors.h"
#include "tests/fuzz/checkpoints.h"
#include "tests/fuzz/files.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace phalanx;
  static const Directory directory;
  static const bool written = [] {
    directory.Write("config.json",
                    R"({"architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 8,
                        "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2,
                        "num_key_value_heads": 1, "vocab_size": 16, "rms_norm_eps": 1e-5,
                        "max_position_embeddings": 64, "tie_word_embeddings": true, "hidden_act": "silu"})");
    return true;
  }();
  (void)written;
  directory.Write("model.safetensors", {reinterpret_cast<const char*>(data), size});
  if (const auto checkpoint = Checkpoint::Open(directory.path()); checkpoint.ok()) ReadAll(**checkpoint);
  return 0;
}
