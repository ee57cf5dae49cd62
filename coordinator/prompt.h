// A chat to token ids. What users write stays text: the name of a control token in a message, a tool or a
// variable does not become that token.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"
#include "coordinator/request.h"
#include "coordinator/text/chat_template.h"
#include "coordinator/text/tokenizer.h"

namespace phalanx::coordinator {

// The names of a tokenizer's control tokens. Thread safety: immutable.
class ControlNames {
 public:
  ControlNames() = default;
  explicit ControlNames(const TokenBytes& table);

  // The longest name that `text` has at byte `at`, as its size; 0 if there is none.
  size_t LengthAt(std::string_view text, size_t at) const;

 private:
  std::vector<std::string> names_;  // longest first within an equal first byte
  // names_[first_[b]..first_[b + 1]) begin with byte b.
  std::vector<size_t> first_ = std::vector<size_t>(257, 0);
};

// Renders `chat`, with the generation prompt unless the options say otherwise, and encodes it: names of
// control tokens that the template wrote stand for those tokens; where users wrote any part of a name, it is
// text. Errors are the template's and the tokenizer's, and InvalidArgument for a chat that takes more than
// most_bytes as text (0: it may take any size).
absl::StatusOr<std::vector<int32_t>> EncodeChat(const std::vector<Message>& chat,
                                                const ChatTemplate& chat_template, const Tokenizer& tokenizer,
                                                const ControlNames& names, const ChatOptions& options = {},
                                                int64_t most_bytes = 0);

// Encodes `text` as it is, control tokens included, behind BOS where the model wants one.
absl::StatusOr<std::vector<int32_t>> EncodeText(std::string_view text, const Tokenizer& tokenizer);

}  // namespace phalanx::coordinator
