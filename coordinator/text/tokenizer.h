// Text to token ids.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"
#include "base/gguf.h"
#include "base/token_bytes.h"

namespace phalanx {

// Thread safety: immutable; Encode may run on many threads.
class Tokenizer {
 public:
  virtual ~Tokenizer() = default;

  // The tokens of `text`, without a BOS. parse_special: the names of control tokens stand for those tokens;
  // else they are text like any other, which is how text from users must be encoded. Names of user-defined
  // tokens always stand for them, unless they look like marks (LooksLikeMark): those are as control tokens
  // here. Bytes that have no token in the vocabulary are left out unless it has an
  // unknown or byte tokens, as in Hugging Face's BPE. InvalidArgument naming the offset if `text` is not
  // UTF-8. O(n log n).
  virtual absl::StatusOr<std::vector<int32_t>> Encode(std::string_view text, bool parse_special) const = 0;

  int32_t vocab_size() const { return static_cast<int32_t>(token_bytes_.bytes.size()); }
  const TokenBytes& token_bytes() const { return token_bytes_; }
  std::optional<int32_t> bos_id() const { return bos_id_; }
  std::optional<int32_t> eos_id() const { return eos_id_; }
  // Tokens that end a turn by the file's own word: eos, eot, eom. Ascending, may be empty.
  const std::vector<int32_t>& stop_ids() const { return stop_ids_; }
  // Whether a prompt that is not made by a chat template begins with BOS.
  bool add_bos() const { return add_bos_; }

 protected:
  TokenBytes token_bytes_;
  std::optional<int32_t> bos_id_, eos_id_;
  std::vector<int32_t> stop_ids_;
  bool add_bos_ = false;
};

// From `directory`/tokenizer.json and tokenizer_config.json, Hugging Face's format (base/tokenizer_json.h):
// byte-level BPE with the stages that pretokenizer.h names and NFC. BOS and whether to add it are those of
// tokenizer_config.json, and of post_processor where that says nothing; its eos_token ends a turn.
// Unimplemented naming a stage or an option that is not supported; NotFound / InvalidArgument naming file and
// key.
absl::StatusOr<std::unique_ptr<Tokenizer>> TokenizerFromDirectory(const std::string& directory);

// From tokenizer.ggml.*. Unimplemented naming a tokenizer model or pre-tokenizer that is not supported;
// NotFound / InvalidArgument naming missing or impossible keys. The file need not outlive the tokenizer.
absl::StatusOr<std::unique_ptr<Tokenizer>> TokenizerFromGguf(const GgufFile& file);

}  // namespace phalanx
