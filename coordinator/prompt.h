// A chat to token ids. What users write stays text: the name of a control token in a message's content does
// not become that token.
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

// Finds the names of a tokenizer's control tokens in text. Thread safety: immutable.
class ControlNames {
 public:
  ControlNames() = default;
  explicit ControlNames(const TokenBytes& table);

  // `text` with every name fenced: kFenceBegin name kFenceEnd; those two bytes elsewhere in `text` become
  // U+FFFD.
  std::string Fence(std::string_view text) const;
  // Whether `text` is one of the names.
  bool IsName(std::string_view text) const;

  static constexpr char kFenceBegin = '\x02';
  static constexpr char kFenceEnd = '\x03';

 private:
  std::vector<std::string> names_;  // longest first within an equal first byte
  // names_[first_[b]..first_[b + 1]) begin with byte b.
  std::vector<size_t> first_ = std::vector<size_t>(257, 0);
};

// Renders `chat` with the generation prompt and encodes it: names of control tokens that the template wrote
// stand for those tokens, fenced ones are text. Errors are the template's and the tokenizer's.
absl::StatusOr<std::vector<int32_t>> EncodeChat(const std::vector<Message>& chat,
                                                const ChatTemplate& chat_template, const Tokenizer& tokenizer,
                                                const ControlNames& names);

// Encodes `text` as it is, control tokens included, behind BOS where the model wants one.
absl::StatusOr<std::vector<int32_t>> EncodeText(std::string_view text, const Tokenizer& tokenizer);

}  // namespace phalanx::coordinator
