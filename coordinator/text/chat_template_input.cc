#include "coordinator/text/chat_template_input.h"

#include <algorithm>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "base/status_macros.h"
#include "base/strings.h"
#include "coordinator/text/utf8.h"

namespace phalanx::jinja {
namespace {

absl::Status CheckUtf8(const std::string& text, const std::string& what) {
  const size_t valid = ValidUtf8Prefix(text);
  if (valid == text.size()) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat(what, " is not valid UTF-8 at byte offset ", valid));
}

absl::StatusOr<Value> ParseObject(const std::string& json, const std::string& what) {
  absl::StatusOr<Value> value = ParseJson(json);
  if (!value.ok()) {
    return absl::InvalidArgumentError(absl::StrCat(what, " is not JSON: ", value.status().message()));
  }
  if (value->dict() == nullptr) {
    return absl::InvalidArgumentError(
        absl::StrCat(what, " is a ", value->kind(), " in JSON, must be an object"));
  }
  return value;
}

absl::StatusOr<Date> ParseDate(const std::string& text) {
  static constexpr int kDays[] = {31, 29, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31};
  Date date;
  const bool shape = text.size() == 10 && text[4] == '-' && text[7] == '-' &&
                     text.find_first_not_of("0123456789-") == std::string::npos;
  if (shape && absl::SimpleAtoi(text.substr(0, 4), &date.year) &&
      absl::SimpleAtoi(text.substr(5, 2), &date.month) && absl::SimpleAtoi(text.substr(8, 2), &date.day) &&
      date.year > 0 && date.month >= 1 && date.month <= 12 && date.day >= 1 &&
      date.day <= kDays[date.month - 1]) {
    const bool leap = (date.year % 4 == 0 && date.year % 100 != 0) || date.year % 400 == 0;
    if (date.month != 2 || date.day < 29 || leap) return date;
  }
  return absl::InvalidArgumentError(
      absl::StrCat("chat.date is ", Quote(text), ", must be a day as YYYY-MM-DD"));
}

// Templates make control tokens of these (<|user|>); of no other role may they.
bool IsUsualRole(std::string_view role) {
  for (const char* usual : {"system", "user", "assistant", "tool", "developer", "ipython", "function"}) {
    if (role == usual) return true;
  }
  return false;
}

}  // namespace

absl::StatusOr<ChatInput> ChatInput::Make(const std::vector<ChatMessage>& messages,
                                          const RenderOptions& options) {
  ChatInput input;
  input.first_ = messages.data();
  for (size_t i = 0; i < messages.size(); ++i) {
    const ChatMessage& m = messages[i];
    const std::string where = absl::StrCat("chat.messages[", i, "]");
    PHX_RETURN_IF_ERROR(CheckUtf8(m.role, where + ".role"));
    PHX_RETURN_IF_ERROR(CheckUtf8(m.content, where + ".content"));
    PHX_RETURN_IF_ERROR(CheckUtf8(m.reasoning, where + ".reasoning"));
    PHX_RETURN_IF_ERROR(CheckUtf8(m.tool_call_id, where + ".tool_call_id"));
    PHX_RETURN_IF_ERROR(CheckUtf8(m.name, where + ".name"));
    input.bytes_ += static_cast<int64_t>(m.content.size() + m.reasoning.size());
    std::vector<Value> arguments;
    for (size_t c = 0; c < m.tool_calls.size(); ++c) {
      const ToolCall& call = m.tool_calls[c];
      const std::string call_where = absl::StrCat(where, ".tool_calls[", c, "]");
      PHX_RETURN_IF_ERROR(CheckUtf8(call.id, call_where + ".id"));
      PHX_RETURN_IF_ERROR(CheckUtf8(call.name, call_where + ".name"));
      PHX_ASSIGN_OR_RETURN(Value value, ParseObject(call.arguments.empty() ? "{}" : call.arguments,
                                                    call_where + ".arguments"));
      input.bytes_ += static_cast<int64_t>(call.arguments.size());
      arguments.push_back(std::move(value));
    }
    input.arguments_.push_back(std::move(arguments));
  }
  if (!options.tools.empty()) {
    std::vector<Value> tools;
    for (size_t i = 0; i < options.tools.size(); ++i) {
      PHX_ASSIGN_OR_RETURN(Value tool, ParseObject(options.tools[i], absl::StrCat("chat.tools[", i, "]")));
      input.bytes_ += static_cast<int64_t>(options.tools[i].size());
      tools.push_back(std::move(tool));
    }
    PHX_ASSIGN_OR_RETURN(input.tools_, Value::MakeList(std::move(tools)));
  }
  if (!options.variables.empty()) {
    PHX_ASSIGN_OR_RETURN(input.variables_, ParseObject(options.variables, "chat.template_kwargs"));
    input.bytes_ += static_cast<int64_t>(options.variables.size());
    for (const auto& entry : input.variables_.dict()->entries) {
      const std::string_view name = entry.first.text()->view();
      for (const char* taken :
           {"messages", "tools", "documents", "add_generation_prompt", "continue_final_message", "bos_token",
            "eos_token", "raise_exception", "strftime_now", "namespace", "range", "dict", "loop"}) {
        if (name == taken) {
          return absl::InvalidArgumentError(
              absl::StrCat("chat.template_kwargs: '", taken, "' is not for a caller to set"));
        }
      }
    }
  }
  if (!options.date.empty()) {
    PHX_ASSIGN_OR_RETURN(input.today_, ParseDate(options.date));
  }
  return input;
}

absl::StatusOr<Value> ChatInput::MessageValue(const InputMessage& input, ToolCallForm form) const {
  const ChatMessage& m = *input.message;
  const auto user = [](const std::string& text) { return Value::Str(text, /*user=*/true); };
  Dict dict;
  const auto add = [&dict](const char* key, Value value) {
    dict.entries.emplace_back(Value::Str(key), std::move(value));
  };
  if (!m.reasoning.empty()) add("thinking", user(m.reasoning));
  add("role", Value::Str(m.role, !IsUsualRole(m.role)));
  const bool none = m.content.empty() && !m.tool_calls.empty() && !form.content_as_text;
  add("content", none ? Value() : Value(input.content));
  if (!m.tool_calls.empty()) {
    const std::vector<Value>& arguments = arguments_[static_cast<size_t>(input.message - first_)];
    std::vector<Value> calls;
    for (size_t c = 0; c < m.tool_calls.size(); ++c) {
      const ToolCall& call = m.tool_calls[c];
      Dict function, outer;
      function.entries.emplace_back(Value::Str("name"), user(call.name));
      function.entries.emplace_back(
          Value::Str("arguments"),
          form.arguments_as_text ? user(call.arguments.empty() ? "{}" : call.arguments) : arguments[c]);
      PHX_ASSIGN_OR_RETURN(Value function_value, Value::MakeDict(std::move(function)));
      outer.entries.emplace_back(Value::Str("type"), Value::Str("function"));
      if (!call.id.empty()) outer.entries.emplace_back(Value::Str("id"), user(call.id));
      outer.entries.emplace_back(Value::Str("function"), std::move(function_value));
      PHX_ASSIGN_OR_RETURN(Value call_value, Value::MakeDict(std::move(outer)));
      calls.push_back(std::move(call_value));
    }
    PHX_ASSIGN_OR_RETURN(Value list, Value::MakeList(std::move(calls)));
    add("tool_calls", std::move(list));
  }
  if (!m.tool_call_id.empty()) add("tool_call_id", user(m.tool_call_id));
  if (!m.name.empty()) add("name", user(m.name));
  if (!m.reasoning.empty()) add("reasoning_content", user(m.reasoning));
  return Value::MakeDict(std::move(dict));
}

absl::StatusOr<std::shared_ptr<Scope>> ChatInput::Variables(const std::vector<InputMessage>& messages,
                                                            const RenderOptions& options,
                                                            ToolCallForm form) const {
  auto scope = std::make_shared<Scope>();
  if (variables_.dict() != nullptr) {
    for (const auto& [name, value] : variables_.dict()->entries) {
      scope->variables.emplace_back(std::string(name.text()->view()), value);
    }
  }
  std::vector<Value> list;
  for (const InputMessage& message : messages) {
    PHX_ASSIGN_OR_RETURN(Value value, MessageValue(message, form));
    list.push_back(std::move(value));
  }
  PHX_ASSIGN_OR_RETURN(Value message_list, Value::MakeList(std::move(list)));
  scope->Set("messages", std::move(message_list));
  scope->Set("add_generation_prompt", Value::Bool(options.add_generation_prompt));
  if (!options.bos_token.empty()) scope->Set("bos_token", Value::Str(options.bos_token));
  if (!options.eos_token.empty()) scope->Set("eos_token", Value::Str(options.eos_token));
  scope->Set("tools", tools_);
  scope->Set("documents", Value());
  return scope;
}

}  // namespace phalanx::jinja
