#include "coordinator/text/chat_template.h"

#include <utility>

#include "absl/strings/str_cat.h"
#include "base/status_macros.h"
#include "coordinator/text/jinja_ast.h"
#include "coordinator/text/jinja_interpreter.h"
#include "coordinator/text/utf8.h"

namespace phalanx {
namespace {

constexpr size_t kMaxSourceBytes = size_t{1} << 20;

absl::Status Annotate(const absl::Status& status) {
  return absl::Status(status.code(), absl::StrCat("chat template: ", status.message()));
}

absl::Status CheckUtf8(const std::string& text, const std::string& what) {
  const size_t valid = ValidUtf8Prefix(text);
  if (valid == text.size()) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat(what, " is not valid UTF-8 at byte offset ", valid));
}

}  // namespace

absl::StatusOr<ChatTemplate> ChatTemplate::Parse(std::string source) {
  if (source.size() > kMaxSourceBytes) {
    return absl::InvalidArgumentError(
        absl::StrCat("chat template of ", source.size(), " bytes, at most ", kMaxSourceBytes, " are read"));
  }
  PHX_RETURN_IF_ERROR(CheckUtf8(source, "chat template"));
  absl::StatusOr<jinja::Program> program = jinja::ParseProgram(source);
  if (!program.ok()) return Annotate(program.status());
  ChatTemplate result;
  result.source_ = std::move(source);
  result.program_ = std::make_shared<const jinja::Program>(*std::move(program));
  return result;
}

absl::StatusOr<std::string> ChatTemplate::Render(const std::vector<ChatMessage>& messages,
                                                 const RenderOptions& options) const {
  using jinja::Value;
  std::vector<Value> list;
  list.reserve(messages.size());
  for (size_t i = 0; i < messages.size(); ++i) {
    PHX_RETURN_IF_ERROR(CheckUtf8(messages[i].role, absl::StrCat("role of message ", i)));
    PHX_RETURN_IF_ERROR(CheckUtf8(messages[i].content, absl::StrCat("content of message ", i)));
    jinja::Dict message;
    message.Set("role", Value::Str(messages[i].role));
    message.Set("content", Value::Str(messages[i].content));
    PHX_ASSIGN_OR_RETURN(Value value, Value::MakeDict(std::move(message)));
    list.push_back(std::move(value));
  }
  jinja::Dict variables;
  PHX_ASSIGN_OR_RETURN(Value message_list, Value::MakeList(std::move(list)));
  variables.Set("messages", std::move(message_list));
  variables.Set("add_generation_prompt", Value::Bool(options.add_generation_prompt));
  variables.Set("bos_token", Value::Str(options.bos_token));
  variables.Set("eos_token", Value::Str(options.eos_token));
  variables.Set("tools", Value());
  variables.Set("documents", Value());
  absl::StatusOr<std::string> text = jinja::Run(*program_, std::move(variables));
  if (!text.ok()) return Annotate(text.status());
  return text;
}

}  // namespace phalanx
