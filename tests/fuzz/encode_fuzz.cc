// Text from users, through a byte-level tokenizer of every known kind: its bytes come back, normalised where
// the kind says so. The first byte chooses the kind.
#include <array>
#include <cstdint>
#include <cstdlib>
#include <memory>
#include <string>
#include <vector>

#include "base/byte_alphabet.h"
#include "coordinator/text/detokenizer.h"
#include "coordinator/text/nfc.h"
#include "coordinator/text/tokenizer.h"
#include "tests/base/gguf_writer.h"
#include "tests/fuzz/files.h"
#include "tests/fuzz/inputs.h"

namespace {

constexpr std::array kKinds = {"smollm", "gpt-2", "llama-bpe", "gpt-4o", "qwen2", "deepseek-v3"};
constexpr size_t kNormalises = 4;  // NFC
using Tokenizers = std::vector<std::unique_ptr<phalanx::Tokenizer>>;

Tokenizers MakeTokenizers() {
  using namespace phalanx;
  Tokenizers made;
  const Directory directory;
  for (const char* kind : kKinds) {
    std::vector<std::string> tokens(ByteAlphabet().begin(), ByteAlphabet().end());
    std::vector<int32_t> types(tokens.size(), 1);
    for (const char* piece : {"he", "in", "\u0120t", "\u0120th", "\u0120the", "th"}) {
      tokens.push_back(piece);
      types.push_back(1);
    }
    tokens.push_back("<|end|>");
    types.push_back(3);
    tokens.push_back("<think>");
    types.push_back(4);
    GgufWriter w;
    w.SetString("general.architecture", "llama");
    w.SetString("tokenizer.ggml.model", "gpt2");
    w.SetString("tokenizer.ggml.pre", kind);
    w.SetStrings("tokenizer.ggml.tokens", tokens);
    w.SetI32s("tokenizer.ggml.token_type", types);
    w.SetStrings("tokenizer.ggml.merges", {"h e", "i n", "\u0120 t", "\u0120t he", "t h", "\u0120t h"});
    const std::string path = directory.path() + "/" + kind;
    if (!w.Write(path)) std::abort();
    const auto file = GgufFile::Open(path);
    auto tokenizer = file.ok() ? TokenizerFromGguf(**file) : file.status();
    if (!tokenizer.ok()) std::abort();
    made.push_back(*std::move(tokenizer));
  }
  return made;
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace phalanx;
  static const Tokenizers tokenizers = MakeTokenizers();
  Input input(data, size);
  const uint8_t choice = input.Byte();
  const Tokenizer& tokenizer = *tokenizers[choice % tokenizers.size()];
  const std::string_view text = input.Rest();
  std::string valid, cut;
  Utf8Stream whole;
  whole.Feed(text, &valid);
  whole.Finish(&valid);
  const auto ids = tokenizer.Encode(text, (choice & 64) != 0);
  if (ids.ok() != (valid == text)) std::abort();
  if (!ids.ok()) return 0;
  Detokenizer detokenizer(&tokenizer.token_bytes(), /*keep_control=*/true);
  for (const int32_t id : *ids) {
    if (!detokenizer.Feed(id, &cut).ok()) std::abort();
  }
  detokenizer.Finish(&cut);
  // One kind normalises, between the names of tokens: a name may keep characters apart that compose.
  std::string normal_cut, normal_text;
  const bool same = choice % kKinds.size() == kNormalises
                        ? NormalizeNfc(cut, &normal_cut) == NormalizeNfc(text, &normal_text)
                        : cut == text;
  if (!same) std::abort();
  return 0;
}
