// tokenizer.json, and text through the tokenizer that it makes.
#include <cstdlib>

#include "coordinator/text/tokenizer.h"
#include "tests/fuzz/files.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace phalanx;
  static const Directory directory;
  directory.Write("tokenizer_config.json", R"({"bos_token": "<s>", "eos_token": "</s>"})");
  directory.Write("tokenizer.json", {reinterpret_cast<const char*>(data), size});
  const auto tokenizer = TokenizerFromDirectory(directory.path());
  if (!tokenizer.ok()) return 0;
  for (const char* text : {"", "Hello, world", "a  b\n\n 12345 don't \xE4\xB8\x96", "</s><s>", "e\xCC\x81"}) {
    for (const bool parse_special : {true, false}) {
      const auto ids = (*tokenizer)->Encode(text, parse_special);
      if (!ids.ok()) continue;
      for (const int32_t id : *ids) {
        if (id < 0 || id >= (*tokenizer)->vocab_size()) std::abort();
      }
    }
  }
  return 0;
}
