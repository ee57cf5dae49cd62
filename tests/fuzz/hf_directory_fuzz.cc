// The JSON files of a Hugging Face directory: config.json, generation_config.json, tokenizer_config.json, or
// the index of its weights. The other files are those of a small model.
#include "base/byte_alphabet.h"
#include "base/hf_config.h"
#include "base/safetensors.h"
#include "coordinator/open_model.h"
#include "tests/fuzz/checkpoints.h"
#include "tests/fuzz/files.h"

namespace {

using phalanx::Directory;

// A directory whose other files are right.
const Directory& Made(const Directory& made) {
  made.Write("config.json",
             R"({"architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 8,
                 "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2,
                 "num_key_value_heads": 1, "vocab_size": 264, "rms_norm_eps": 1e-5,
                 "max_position_embeddings": 64, "tie_word_embeddings": true, "hidden_act": "silu"})");
  nlohmann::json vocab = nlohmann::json::object();
  for (const std::string& character : phalanx::ByteAlphabet()) vocab.emplace(character, vocab.size());
  const nlohmann::json byte_level = {{"type", "ByteLevel"}, {"add_prefix_space", false}, {"use_regex", true}};
  const nlohmann::json tokenizer = {
      {"added_tokens", {{{"id", 256}, {"content", "<s>"}, {"special", true}}}},
      {"pre_tokenizer", byte_level},
      {"decoder", byte_level},
      {"model", {{"type", "BPE"}, {"vocab", vocab}, {"merges", nlohmann::json::array()}}}};
  made.Write("tokenizer.json", tokenizer.dump());
  return made;
}

void Open(const Directory& directory) {
  phalanx::coordinator::ModelSpec spec;
  spec.path = directory.path();
  (void)phalanx::coordinator::OpenModel(spec);
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace phalanx;
  const std::string_view text(reinterpret_cast<const char*>(data), size);
  static const Directory folders[4];
  static const Directory &config = Made(folders[0]), &generation = Made(folders[1]);
  static const Directory &tokenizer = Made(folders[2]), &index = Made(folders[3]);
  config.Write("config.json", text);
  (void)ReadHfConfig(config.path());
  Open(config);
  generation.Write("generation_config.json", text);
  Open(generation);
  tokenizer.Write("tokenizer_config.json", text);
  Open(tokenizer);
  index.Write("model.safetensors.index.json", text);
  if (const auto checkpoint = Checkpoint::Open(index.path()); checkpoint.ok()) ReadAll(**checkpoint);
  return 0;
}
