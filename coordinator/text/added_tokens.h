// Tokens that are looked for in text before it is cut into words.
#pragma once

#include <array>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/functional/function_ref.h"

namespace phalanx {

// Thread safety: immutable once filled.
class AddedTokens {
 public:
  struct Token {
    int32_t id;
    // Control tokens are text where only text is wanted.
    bool is_control;
    bool single_word;     // only where no word character is beside it
    bool lstrip, rstrip;  // takes the white space before or behind it
  };

  // Of two with one name, the first counts; empty names are ignored.
  void Add(std::string_view name, Token token);
  bool empty() const { return tokens_.empty(); }

  // Cuts valid UTF-8 into tokens and text between, as Hugging Face's tokenizers do: from the left, of the
  // names at one place the longest. A name that may not count there (a control token without `with_control`,
  // a part of a word with single_word) is text, and no shorter name is looked for in its place. Linear in the
  // text for names of a bounded length. Text is never empty.
  void Split(std::string_view text, bool with_control, absl::FunctionRef<void(std::string_view)> on_text,
             absl::FunctionRef<void(int32_t)> on_token) const;

 private:
  // The longest name at the beginning of `text`: its token and its length; -1 if there is none.
  int32_t Longest(std::string_view text, size_t* bytes) const;

  std::array<bool, 256> begins_{};
  // A trie: (node, byte) -> node. Node 0 is the root.
  absl::flat_hash_map<uint64_t, uint32_t> children_;
  std::vector<int32_t> token_of_{-1};  // by node: index in tokens_
  std::vector<Token> tokens_;
};

}  // namespace phalanx
