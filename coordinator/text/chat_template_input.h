// A chat as the variables of its template.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "coordinator/text/chat_template.h"
#include "coordinator/text/jinja_functions.h"
#include "coordinator/text/jinja_interpreter.h"

namespace phalanx::jinja {

// A message whose content may be partly the template's own.
struct InputMessage {
  const ChatMessage* message = nullptr;
  Text content;
};

// How tool calls are passed; see ChatMessage.
struct ToolCallForm {
  bool arguments_as_text = false;
  bool content_as_text = false;
};

// The parts of a chat that do not depend on the form, checked and parsed once.
class ChatInput {
 public:
  static absl::StatusOr<ChatInput> Make(const std::vector<ChatMessage>& messages,
                                        const RenderOptions& options);

  absl::StatusOr<std::shared_ptr<Scope>> Variables(const std::vector<InputMessage>& messages,
                                                   const RenderOptions& options, ToolCallForm form) const;
  const std::optional<Date>& today() const { return today_; }
  // Of all that users wrote.
  int64_t bytes() const { return bytes_; }

 private:
  absl::StatusOr<Value> MessageValue(const InputMessage& input, ToolCallForm form) const;

  const ChatMessage* first_ = nullptr;
  std::vector<std::vector<Value>> arguments_;  // [message][tool call]
  Value tools_, variables_;
  std::optional<Date> today_;
  int64_t bytes_ = 0;
};

}  // namespace phalanx::jinja
