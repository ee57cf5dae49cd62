// Chat messages to the prompt a model was trained on, by the Jinja template in the model's file.
//
// A subset of Jinja, set up as Hugging Face transformers sets it up (trim_blocks, lstrip_blocks, break and
// continue, generation blocks, the same tojson, the same variables, the same functions, nothing mutable but
// namespaces). Left out: call blocks, recursive for, include / import / extends / block, unpacking of
// arguments, and those filters and tests that an error names none of.
#pragma once

#include <cstddef>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"

namespace phalanx {

namespace jinja {
struct Program;
}  // namespace jinja

struct ToolCall {
  std::string id;
  std::string name;
  std::string arguments;  // JSON text of an object; empty stands for {}
};

// Templates see role and content always, the others where they are not empty: reasoning as reasoning_content
// and thinking, tool_calls as [{"type": "function", "id": id, "function": {"name": name, "arguments":
// mapping}}]. The content of a message that has tool calls and no text is none, or "" where the template
// would print the none. Where a template cannot be rendered so, it is tried with the arguments as the JSON
// text they came in, and with content "".
struct ChatMessage {
  std::string role;
  std::string content;
  std::string reasoning = {};
  std::vector<ToolCall> tool_calls = {};
  std::string tool_call_id = {};
  std::string name = {};
};

// What becomes of the system messages of a chat. Many reasoning models were trained with one fixed system
// prompt, which their template writes unless the chat has one of its own.
enum class SystemPrompt {
  kHonour,  // what the template does
  kModel,   // they are dropped, so that the template writes its own
  // The first message, if it is a system message, becomes the template's own system prompt, "\n\n" and the
  // message's content; a template that joins the two by itself does so in its own way.
  kAppend,
};

struct RenderOptions {
  bool add_generation_prompt = false;
  // The prompt ends where the last message's content ends, so that the model goes on with it.
  bool continue_final_message = false;
  std::string bos_token = {};  // undefined to the template where empty, as eos_token
  std::string eos_token = {};
  std::vector<std::string> tools = {};  // JSON text of an object each; `tools` is none where there are none
  // JSON text of an object, empty for none: further variables, such as {"enable_thinking": false}.
  std::string variables = {};
  // "YYYY-MM-DD": strftime_now formats midnight of that day. Empty: there is no strftime_now, and templates
  // that ask for it fall back to their fixed date, so that a prompt is the same tomorrow.
  std::string date = {};
  SystemPrompt system_prompt = SystemPrompt::kHonour;
};

struct RenderedChat {
  std::string text;
  // Where the origin of the text changes, ascending: the bytes before the first are the template's, those up
  // to the second were written by users (contents, names, tools, variables; not the usual roles), and so on.
  std::vector<size_t> borders;
};

// Thread safety: immutable; Render may run on many threads.
class ChatTemplate {
 public:
  // Unimplemented for a construct outside the subset, InvalidArgument for one that is no Jinja; both name it
  // and its line.
  static absl::StatusOr<ChatTemplate> Parse(std::string source);

  // InvalidArgument: raise_exception (with its message), an operation that fails, or a chat, tool or variable
  // that is malformed (named as in the request: chat.messages[3].tool_calls[0].arguments); Unimplemented: an
  // operation outside the subset; ResourceExhausted: more work or output than a prompt can be worth;
  // FailedPrecondition: a system prompt is asked for that the template does not have. Errors of the template
  // name the line.
  absl::StatusOr<RenderedChat> RenderChat(const std::vector<ChatMessage>& messages,
                                          const RenderOptions& options) const;
  // The text of it.
  absl::StatusOr<std::string> Render(const std::vector<ChatMessage>& messages,
                                     const RenderOptions& options) const;
  // The system prompt that the template writes into a chat that has none; empty if it writes none.
  absl::StatusOr<std::string> OwnSystemPrompt(const RenderOptions& options) const;

  const std::string& source() const { return source_; }

 private:
  ChatTemplate() = default;

  std::string source_;
  std::shared_ptr<const jinja::Program> program_;
};

}  // namespace phalanx
