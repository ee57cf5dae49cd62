// Chat messages to the prompt a model was trained on, by the Jinja template in the model's file.
//
// A subset of Jinja, set up as Hugging Face transformers sets it up (trim_blocks, lstrip_blocks, the same
// variables): {{ }}, if / elif / else, for (with `if` and else), set (of a name or a namespace's attribute),
// comments and whitespace control; all of the expression language but floats, dict and tuple literals, `/`,
// `**` and chained comparisons; the filters, tests, methods and functions listed in jinja_functions.cc.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"

namespace phalanx {

namespace jinja {
struct Program;
}  // namespace jinja

struct ChatMessage {
  std::string role;
  std::string content;
};

struct RenderOptions {
  bool add_generation_prompt = false;
  std::string bos_token;
  std::string eos_token;
};

// Thread safety: immutable; Render may run on many threads.
class ChatTemplate {
 public:
  // Unimplemented for a construct outside the subset, InvalidArgument for one that is no Jinja; both name it
  // and its line.
  static absl::StatusOr<ChatTemplate> Parse(std::string source);

  // Variables: messages (each a mapping of role and content), add_generation_prompt, bos_token, eos_token;
  // tools and documents are none. There is no strftime_now: templates that ask for it fall back to their
  // fixed date, so a prompt is the same tomorrow. InvalidArgument: raise_exception (with its message) or an
  // operation that fails; Unimplemented: one outside the subset; ResourceExhausted: more work or output than
  // a prompt can be worth. All but the first name the line.
  absl::StatusOr<std::string> Render(const std::vector<ChatMessage>& messages,
                                     const RenderOptions& options) const;

  const std::string& source() const { return source_; }

 private:
  ChatTemplate() = default;

  std::string source_;
  std::shared_ptr<const jinja::Program> program_;
};

}  // namespace phalanx
