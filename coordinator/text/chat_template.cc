#include "coordinator/text/chat_template.h"

#include <algorithm>
#include <utility>

#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "base/status_macros.h"
#include "coordinator/text/chat_template_input.h"
#include "coordinator/text/jinja_ast.h"
#include "coordinator/text/jinja_interpreter.h"
#include "coordinator/text/utf8.h"

namespace phalanx {
namespace {

using jinja::ChatInput;
using jinja::InputMessage;
using jinja::Text;
using jinja::TextBuilder;
using jinja::ToolCallForm;

constexpr size_t kMaxSourceBytes = size_t{1} << 20;
constexpr int64_t kBaseWork = int64_t{1} << 28;
constexpr int64_t kWorkPerByte = 32;
// Stand in for what the template does not know: no template changes them, none writes them.
constexpr char kSystemMark[] = "PhalanxSystemMark5e1f";
constexpr char kUserMark[] = "PhalanxUserMark5e1f";
constexpr char kContinueMark[] = "CONTINUE_FINAL_MESSAGE_TAG ";  // as transformers has it

absl::Status Annotate(const absl::Status& status) {
  return absl::Status(status.code(), absl::StrCat("chat template: ", status.message()));
}

std::vector<InputMessage> InputOf(const std::vector<ChatMessage>& messages) {
  std::vector<InputMessage> list;
  for (const ChatMessage& m : messages) list.push_back({&m, Text(m.content, /*user=*/true)});
  return list;
}

absl::StatusOr<Text> RenderAs(const jinja::Program& program, const ChatInput& input,
                              const std::vector<InputMessage>& messages, const RenderOptions& options,
                              ToolCallForm form) {
  PHX_ASSIGN_OR_RETURN(std::shared_ptr<jinja::Scope> variables, input.Variables(messages, options, form));
  absl::StatusOr<TextBuilder> text =
      jinja::Run(program, std::move(variables), input.today(), kBaseWork + kWorkPerByte * input.bytes());
  if (!text.ok()) return Annotate(text.status());
  return std::move(*text).Build();
}

// How often the text has what a template makes of none.
int64_t CountNones(std::string_view text) {
  int64_t count = 0;
  for (const std::string_view none : {std::string_view("None"), std::string_view("null")}) {
    for (size_t at = 0; (at = text.find(none, at)) != std::string_view::npos; at += none.size()) ++count;
  }
  return count;
}

// In the first form the template takes; the error is that of the usual one.
absl::StatusOr<Text> RenderInput(const jinja::Program& program, const ChatInput& input,
                                 const std::vector<InputMessage>& messages, const RenderOptions& options) {
  absl::StatusOr<Text> first = RenderAs(program, input, messages, options, {});
  bool has_calls = false, has_none = false;
  for (const InputMessage& m : messages) {
    if (m.message->tool_calls.empty()) continue;
    has_calls = true;
    has_none = has_none || m.message->content.empty();
  }
  if (!has_calls || (!first.ok() && first.status().code() != absl::StatusCode::kInvalidArgument))
    return first;
  if (first.ok()) {
    if (!has_none) return first;
    absl::StatusOr<Text> other = RenderAs(program, input, messages, options, {false, true});
    return other.ok() && CountNones(other->view()) < CountNones(first->view()) ? other : first;
  }
  for (const ToolCallForm form :
       {ToolCallForm{true, false}, ToolCallForm{false, true}, ToolCallForm{true, true}}) {
    absl::StatusOr<Text> other = RenderAs(program, input, messages, options, form);
    if (other.ok()) return other;
  }
  return first;
}

// What the template makes of a chat without and with a system message.
struct SystemPlace {
  Text own;            // its own system prompt, which a chat's replaces
  bool joins = false;  // it has one and writes the chat's next to it
};

// Whether there is text besides tags such as <|im_start|> and the name of the role.
bool HasText(std::string_view text, const std::string& bos) {
  if (text.substr(0, bos.size()) == bos) text.remove_prefix(bos.size());
  std::string rest;
  bool in_tag = false;
  for (const char c : text) {
    if (c == '<' || c == '[') in_tag = true;
    if (!in_tag) rest.push_back(c);
    if (c == '>' || c == ']') in_tag = false;
  }
  const std::string_view words = jinja::Strip(rest, true, true);
  return !words.empty() && words != "system";
}

absl::StatusOr<SystemPlace> FindSystemPlace(const jinja::Program& program, RenderOptions options) {
  options.continue_final_message = false;
  options.add_generation_prompt = true;
  const std::vector<ChatMessage> chat = {{"system", kSystemMark}, {"user", kUserMark}};
  PHX_ASSIGN_OR_RETURN(const ChatInput input, ChatInput::Make(chat, options));
  const std::vector<InputMessage> both = InputOf(chat);
  PHX_ASSIGN_OR_RETURN(const Text without, RenderAs(program, input, {both[1]}, options, {}));
  const absl::StatusOr<Text> with = RenderAs(program, input, both, options, {});
  if (!with.ok()) return SystemPlace();
  const std::string_view a = without.view(), b = with->view();
  const size_t mark = b.find(kSystemMark);
  if (mark == std::string_view::npos) return SystemPlace();
  const std::string_view before = b.substr(0, mark), after = b.substr(mark + sizeof kSystemMark - 1);
  SystemPlace place;
  if (a.size() >= before.size() + after.size() && a.substr(0, before.size()) == before &&
      a.substr(a.size() - after.size()) == after) {
    place.own = without.Sub(before.size(), a.size() - before.size() - after.size());
    if (!place.own.empty()) return place;
  }
  // The rest of the prompt is the same with and without: what stands before the chat's may be its own.
  const auto [end, unused] = std::mismatch(a.begin(), a.end(), b.begin(), b.end());
  const auto same = static_cast<size_t>(end - a.begin());
  const bool around =
      a.size() >= same && b.size() >= a.size() && b.substr(b.size() - (a.size() - same)) == a.substr(same);
  place.joins = around && same <= mark && jinja::Strip(b.substr(same, mark - same), true, true).empty() &&
                HasText(b.substr(0, same), options.bos_token);
  return place;
}

absl::Status ApplySystemPrompt(const jinja::Program& program, const RenderOptions& options,
                               std::vector<InputMessage>* messages) {
  if (options.system_prompt == SystemPrompt::kHonour) return absl::OkStatus();
  PHX_ASSIGN_OR_RETURN(const SystemPlace place, FindSystemPlace(program, options));
  if (place.own.empty() && !place.joins) {
    return absl::FailedPreconditionError(
        "chat.system_prompt: the model's chat template has no system prompt of its own; only the caller's "
        "can be "
        "honoured");
  }
  const auto is_system = [](const InputMessage& m) { return m.message->role == "system"; };
  if (options.system_prompt == SystemPrompt::kModel) {
    messages->erase(std::remove_if(messages->begin(), messages->end(), is_system), messages->end());
  } else if (!place.joins && !messages->empty() && is_system(messages->front())) {
    Text& content = messages->front().content;
    content = Text::Concat(Text::Concat(place.own, Text("\n\n", false)), content);
  }
  return absl::OkStatus();
}

// As transformers does it: a mark behind the last content shows where the prompt ends.
absl::StatusOr<Text> CutAtMark(const Text& text, const Text& content) {
  const std::string_view mark = jinja::Strip(kContinueMark, true, true), all = text.view();
  const size_t at = all.rfind(mark);
  if (at == std::string_view::npos ||
      jinja::FindText(all, jinja::Strip(content.view(), true, true), 0) == std::string_view::npos) {
    return absl::InvalidArgumentError(
        "chat.continue_final_message: the last message does not appear in the prompt as it is; the chat "
        "template "
        "changes or drops it");
  }
  if (all.substr(at, sizeof kContinueMark - 1) == kContinueMark) return text.Sub(0, at);
  return text.Sub(jinja::Strip(all.substr(0, at), false, true));
}

}  // namespace

absl::StatusOr<ChatTemplate> ChatTemplate::Parse(std::string source) {
  if (source.size() > kMaxSourceBytes) {
    return absl::InvalidArgumentError(
        absl::StrCat("chat template of ", source.size(), " bytes, at most ", kMaxSourceBytes, " are read"));
  }
  if (const size_t valid = ValidUtf8Prefix(source); valid < source.size()) {
    return absl::InvalidArgumentError(
        absl::StrCat("chat template is not valid UTF-8 at byte offset ", valid));
  }
  absl::StatusOr<jinja::Program> program = jinja::ParseProgram(source);
  if (!program.ok()) return Annotate(program.status());
  ChatTemplate result;
  result.source_ = std::move(source);
  result.program_ = std::make_shared<const jinja::Program>(*std::move(program));
  return result;
}

absl::StatusOr<RenderedChat> ChatTemplate::RenderChat(const std::vector<ChatMessage>& messages,
                                                      const RenderOptions& options) const {
  PHX_ASSIGN_OR_RETURN(const ChatInput input, ChatInput::Make(messages, options));
  std::vector<InputMessage> list = InputOf(messages);
  PHX_RETURN_IF_ERROR(ApplySystemPrompt(*program_, options, &list));
  Text content;
  if (options.continue_final_message) {
    if (options.add_generation_prompt) {
      return absl::InvalidArgumentError(
          "chat.continue_final_message and chat.add_generation_prompt exclude each other");
    }
    if (list.empty() || (list.back().content.empty() && !list.back().message->tool_calls.empty())) {
      return absl::InvalidArgumentError(
          "chat.continue_final_message: there is no last message with content to continue");
    }
    content = list.back().content;
    list.back().content = Text::Concat(content, Text(kContinueMark, true));
  }
  PHX_ASSIGN_OR_RETURN(Text text, RenderInput(*program_, input, list, options));
  if (options.continue_final_message) {
    PHX_ASSIGN_OR_RETURN(text, CutAtMark(text, content));
  }
  TextBuilder whole;
  whole.Append(text);
  RenderedChat rendered;
  rendered.borders = whole.borders();
  rendered.text = std::move(whole).TakeBytes();
  return rendered;
}

absl::StatusOr<std::string> ChatTemplate::Render(const std::vector<ChatMessage>& messages,
                                                 const RenderOptions& options) const {
  PHX_ASSIGN_OR_RETURN(RenderedChat rendered, RenderChat(messages, options));
  return std::move(rendered.text);
}

absl::StatusOr<std::string> ChatTemplate::OwnSystemPrompt(const RenderOptions& options) const {
  PHX_ASSIGN_OR_RETURN(const SystemPlace place, FindSystemPlace(*program_, options));
  return std::string(place.own.view());
}

}  // namespace phalanx
