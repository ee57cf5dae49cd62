// Small model files for the coordinator's tests: a llama header, and a byte-level tokenizer whose ids 0..255
// are the bytes.
#pragma once

#include <gtest/gtest.h>
#include <unistd.h>

#include <string>
#include <vector>

#include "tests/base/gguf_writer.h"

namespace phalanx::coordinator {

inline constexpr int32_t kEnd = 256;       // "<|end|>", end of sequence
inline constexpr int32_t kStart = 257;     // "<|start|>", control
inline constexpr int32_t kHello = 258;     // "hello"
inline constexpr int32_t kThink = 259;     // "<think>", control
inline constexpr int32_t kThinkEnd = 260;  // "</think>", control
inline constexpr int32_t kVocab = 264;
inline constexpr int32_t kContext = 4096;

// A character of GPT-2's alphabet for a byte, as UTF-8.
inline std::string ByteCharacter(int byte) {
  int code = byte;
  const auto plain = [](int b) { return (b >= 33 && b <= 126) || (b >= 161 && b <= 172) || b >= 174; };
  if (!plain(byte)) {
    code = 256;
    for (int b = 0; b < byte; ++b) code += !plain(b);
  }
  if (code < 0x80) return std::string(1, static_cast<char>(code));
  return {static_cast<char>(0xc0 | code >> 6), static_cast<char>(0x80 | (code & 0x3f))};
}

struct TestModel {
  std::string name = "tiny";
  bool tokenizer = true;
  bool chat_template = true;
  std::string template_text =
      "{% for m in messages %}<|start|>{{ m.role }}\n{{ m.content }}<|end|>{% endfor %}"
      "{% if add_generation_prompt %}<|start|>assistant\n{% endif %}";

  // Writes the file and returns its path.
  std::string Write() const {
    GgufWriter w;
    w.SetString("general.architecture", "llama");
    w.SetString("general.name", name);
    w.SetU32("llama.block_count", 2);
    w.SetU32("llama.context_length", kContext);
    w.SetU32("llama.embedding_length", 32);
    w.SetU32("llama.feed_forward_length", 64);
    w.SetU32("llama.attention.head_count", 4);
    w.SetU32("llama.attention.head_count_kv", 2);
    w.SetF32("llama.attention.layer_norm_rms_epsilon", 1e-5f);
    if (tokenizer) {
      std::vector<std::string> tokens;
      std::vector<int32_t> types;
      for (int byte = 0; byte < 256; ++byte) tokens.push_back(ByteCharacter(byte));
      types.assign(256, 1);
      for (const char* control : {"<|end|>", "<|start|>"}) {
        tokens.push_back(control);
        types.push_back(3);
      }
      tokens.push_back("hello");
      types.push_back(1);
      for (const char* control : {"<think>", "</think>"}) {
        tokens.push_back(control);
        types.push_back(3);
      }
      while (tokens.size() < kVocab) {
        tokens.push_back("unused" + std::to_string(tokens.size()));
        types.push_back(5);
      }
      w.SetString("tokenizer.ggml.model", "gpt2");
      w.SetString("tokenizer.ggml.pre", "smollm");
      w.SetStrings("tokenizer.ggml.tokens", tokens);
      w.SetI32s("tokenizer.ggml.token_type", types);
      w.SetStrings("tokenizer.ggml.merges", {});
      w.SetU32("tokenizer.ggml.eos_token_id", kEnd);
      if (chat_template) w.SetString("tokenizer.chat_template", template_text);
    }
    w.AddTensor("token_embd.weight", DType::kF32, {32, kVocab}, std::vector<float>(32 * kVocab));
    static int number = 0;
    const std::string path = ::testing::TempDir() + "coordinator_" + std::to_string(::getpid()) + "_" +
                             std::to_string(number++) + ".gguf";
    EXPECT_TRUE(w.Write(path));
    return path;
  }
};

inline std::vector<int32_t> Bytes(const std::string& text) {
  std::vector<int32_t> ids;
  for (const char c : text) ids.push_back(static_cast<uint8_t>(c));
  return ids;
}

}  // namespace phalanx::coordinator
