#include "coordinator/text/jinja_interpreter.h"

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "base/status_macros.h"
#include "coordinator/text/jinja_lexer.h"

namespace phalanx::jinja {
namespace {

constexpr size_t kMaxOutputBytes = size_t{1} << 26;
constexpr int64_t kStatementWork = 32;
constexpr int64_t kTurnWork = 512;
constexpr int kMaxDepth = 600;

}  // namespace

const Value* Scope::Find(std::string_view name) const {
  for (const Scope* scope = this; scope != nullptr; scope = scope->outer.get()) {
    for (const auto& variable : scope->variables) {
      if (variable.first == name) return &variable.second;
    }
  }
  return nullptr;
}

void Scope::Set(const std::string& name, Value value) {
  for (auto& variable : variables) {
    if (variable.first == name) {
      variable.second = std::move(value);
      return;
    }
  }
  variables.emplace_back(name, std::move(value));
}

absl::Status Interpreter::AtLine(const absl::Status& status, int line) {
  if (status.ok() || status.message().substr(0, 5) == "line ") return status;
  return ErrorAt(line, status.code(), std::string(status.message()));
}

absl::Status Interpreter::Deeper(int line) {
  if (++depth_ <= kMaxDepth) return absl::OkStatus();
  return ErrorAt(line, absl::StatusCode::kResourceExhausted, "the chat template calls itself too deep");
}

absl::Status Interpreter::Account(size_t bytes, int line) {
  if (bytes > kMaxOutputBytes - std::min(kMaxOutputBytes, output_.size())) {
    return ErrorAt(line, absl::StatusCode::kResourceExhausted,
                   absl::StrCat("the chat template renders more than ", kMaxOutputBytes, " bytes"));
  }
  return Charge(static_cast<int64_t>(bytes), line);
}

absl::Status Interpreter::Output(const Text& text, int line) {
  PHX_RETURN_IF_ERROR(Account(text.size(), line));
  output_.Append(text);
  return absl::OkStatus();
}

absl::Status Interpreter::Execute(const Block& block) {
  for (const Stmt& stmt : block) {
    PHX_RETURN_IF_ERROR(Charge(kStatementWork, stmt.line));
    PHX_RETURN_IF_ERROR(Deeper(stmt.line));
    PHX_RETURN_IF_ERROR(ExecuteOne(stmt));
    --depth_;
    if (leave_ != Leave::kNo) break;
  }
  return absl::OkStatus();
}

absl::Status Interpreter::ExecuteOne(const Stmt& stmt) {
  switch (stmt.kind) {
    case Stmt::Kind::kText:
      PHX_RETURN_IF_ERROR(Account(stmt.text.size(), stmt.line));
      output_.Append(stmt.text, /*user=*/false);
      return absl::OkStatus();
    case Stmt::Kind::kOutput:
      return ExecuteOutput(stmt);
    case Stmt::Kind::kIf:
      return ExecuteIf(stmt);
    case Stmt::Kind::kFor:
      return ExecuteFor(stmt);
    case Stmt::Kind::kSet:
      return ExecuteSet(stmt);
    case Stmt::Kind::kSetBlock: {
      PHX_ASSIGN_OR_RETURN(Value value, Capture(stmt.branches[0].body, stmt.filter.get()));
      if (!stmt.attribute.empty()) return AssignAttribute(stmt, std::move(value));
      return Assign(stmt.target, value, stmt.line);
    }
    case Stmt::Kind::kFilter: {
      PHX_ASSIGN_OR_RETURN(const Value value, Capture(stmt.branches[0].body, stmt.filter.get()));
      PHX_ASSIGN_OR_RETURN(const Text text, AtLine(ToText(value), stmt.line));
      return Output(text, stmt.line);
    }
    case Stmt::Kind::kMacro:
      scope_->Set(stmt.name, Value::MakeMacro({&stmt, scope_}));
      return absl::OkStatus();
    case Stmt::Kind::kWith:
      return ExecuteWith(stmt);
    case Stmt::Kind::kBreak:
      leave_ = Leave::kBreak;
      return absl::OkStatus();
    case Stmt::Kind::kContinue:
      leave_ = Leave::kContinue;
      return absl::OkStatus();
  }
  return absl::InternalError("unknown kind of statement");
}

absl::Status Interpreter::ExecuteOutput(const Stmt& stmt) {
  PHX_ASSIGN_OR_RETURN(const Value value, Eval(*stmt.expr));
  if (value.list() != nullptr || value.dict() != nullptr) {
    PHX_RETURN_IF_ERROR(Charge(value.extent().weight * 4, stmt.line));
  }
  PHX_ASSIGN_OR_RETURN(const Text text, AtLine(ToText(value), stmt.line));
  return Output(text, stmt.line);
}

absl::Status Interpreter::ExecuteIf(const Stmt& stmt) {
  for (const Stmt::Branch& branch : stmt.branches) {
    PHX_ASSIGN_OR_RETURN(const Value condition, Eval(*branch.condition));
    if (condition.truthy()) return Execute(branch.body);
  }
  return Execute(stmt.otherwise);
}

absl::Status Interpreter::ExecuteFor(const Stmt& stmt) {
  PHX_ASSIGN_OR_RETURN(const Value over, Eval(*stmt.expr));
  PHX_ASSIGN_OR_RETURN(std::vector<Value> items, AtLine(Iterate(over, &context_.budget), stmt.line));
  if (stmt.filter != nullptr) {
    std::vector<Value> kept;
    for (Value& item : items) {
      const Enter enter(this, scope_);
      PHX_RETURN_IF_ERROR(Assign(stmt.target, item, stmt.line));
      PHX_ASSIGN_OR_RETURN(const Value condition, Eval(*stmt.filter));
      if (condition.truthy()) kept.push_back(std::move(item));
    }
    items = std::move(kept);
  }
  if (items.empty()) {
    const Enter enter(this, scope_);
    return Execute(stmt.otherwise);
  }

  auto loop = std::make_shared<Loop>();
  loop->items = std::move(items);
  loop->depth = ++loops_;
  bool goes_on = true;
  for (size_t i = 0; i < loop->items.size() && goes_on; ++i) {
    PHX_RETURN_IF_ERROR(Charge(kTurnWork, stmt.line));
    loop->index = static_cast<int64_t>(i);
    const Enter enter(this, scope_);
    scope_->Set("loop", Value::MakeLoop(loop));
    PHX_RETURN_IF_ERROR(Assign(stmt.target, loop->items[i], stmt.line));
    PHX_RETURN_IF_ERROR(Execute(stmt.branches[0].body));
    goes_on = leave_ != Leave::kBreak;
    leave_ = Leave::kNo;
  }
  --loops_;
  return absl::OkStatus();
}

absl::Status Interpreter::Assign(const Target& target, const Value& value, int line) {
  if (target.parts.empty()) {
    scope_->Set(target.name, value);
    return absl::OkStatus();
  }
  PHX_ASSIGN_OR_RETURN(const std::vector<Value> items, AtLine(Iterate(value, &context_.budget), line));
  if (items.size() != target.parts.size()) {
    return ErrorAt(line, absl::StatusCode::kInvalidArgument,
                   absl::StrCat(items.size(), " values for ", target.parts.size(), " variables"));
  }
  for (size_t i = 0; i < items.size(); ++i) PHX_RETURN_IF_ERROR(Assign(target.parts[i], items[i], line));
  return absl::OkStatus();
}

absl::Status Interpreter::ExecuteSet(const Stmt& stmt) {
  PHX_ASSIGN_OR_RETURN(Value value, Eval(*stmt.expr));
  if (!stmt.attribute.empty()) return AssignAttribute(stmt, std::move(value));
  return Assign(stmt.target, value, stmt.line);
}

absl::Status Interpreter::AssignAttribute(const Stmt& stmt, Value value) {
  const std::string& name = stmt.target.name;
  const Value* target = scope_->Find(name);
  if (target == nullptr || target->name_space() == nullptr) {
    return ErrorAt(stmt.line, absl::StatusCode::kInvalidArgument,
                   absl::StrCat("set ", name, ".", stmt.attribute, ": '", name, "' is no namespace"));
  }
  if (stmt.attribute[0] == '_') {
    return ErrorAt(stmt.line, absl::StatusCode::kInvalidArgument,
                   absl::StrCat("set ", name, ".", stmt.attribute, ": a name that begins with '_'"));
  }
  if (value.name_space() != nullptr) {
    return ErrorAt(stmt.line, absl::StatusCode::kUnimplemented, "a namespace inside another value");
  }
  target->name_space()->Set(stmt.attribute, std::move(value));
  return absl::OkStatus();
}

absl::Status Interpreter::ExecuteWith(const Stmt& stmt) {
  std::vector<Value> values;
  for (const auto& parameter : stmt.parameters) {
    PHX_ASSIGN_OR_RETURN(Value value, Eval(*parameter.second));
    values.push_back(std::move(value));
  }
  const Enter enter(this, scope_);
  for (size_t i = 0; i < values.size(); ++i) {
    PHX_RETURN_IF_ERROR(Assign(stmt.parameters[i].first, values[i], stmt.line));
  }
  return Execute(stmt.branches[0].body);
}

absl::StatusOr<Value> Interpreter::Capture(const Block& body, const Expr* filter) {
  TextBuilder outside = std::exchange(output_, TextBuilder());
  const Enter enter(this, scope_);
  PHX_RETURN_IF_ERROR(Execute(body));
  Value text = Value(std::exchange(output_, std::move(outside)).Build());
  std::vector<const Expr*> filters;  // the outermost first
  for (; filter != nullptr; filter = filter->args[0].get()) filters.push_back(filter);
  for (auto it = filters.rbegin(); it != filters.rend(); ++it) {
    PHX_ASSIGN_OR_RETURN(text, ApplyFilter(**it, text));
  }
  return text;
}

absl::StatusOr<Value> Interpreter::CallMacro(const Macro& macro, const Arguments& arguments, int line) {
  const Stmt& stmt = *macro.stmt;
  std::shared_ptr<Scope> outer = macro.scope.lock();
  if (outer == nullptr) {
    return ErrorAt(line, absl::StatusCode::kUnimplemented,
                   absl::StrCat("macro ", stmt.name, "() is called outside of the block it is defined in"));
  }
  const auto fail = [&](const std::string& what) {
    return ErrorAt(line, absl::StatusCode::kInvalidArgument, absl::StrCat("macro ", stmt.name, "(): ", what));
  };
  if (arguments.positional.size() > stmt.parameters.size()) {
    return fail(absl::StrCat(arguments.positional.size(), " arguments, at most ", stmt.parameters.size(),
                             " are taken"));
  }
  std::vector<std::optional<Value>> values(stmt.parameters.size());
  std::copy(arguments.positional.begin(), arguments.positional.end(), values.begin());
  for (const auto& [name, value] : arguments.keywords) {
    size_t i = 0;
    while (i < values.size() && stmt.parameters[i].first.name != name) ++i;
    if (i == values.size() || values[i])
      return fail(absl::StrCat("keyword '", name, "' is unknown or twice there"));
    values[i] = value;
  }
  TextBuilder outside = std::exchange(output_, TextBuilder());
  const Enter enter(this, std::move(outer));
  for (size_t i = 0; i < values.size(); ++i) {
    const std::string& name = stmt.parameters[i].first.name;
    if (!values[i] && stmt.parameters[i].second != nullptr) {
      PHX_ASSIGN_OR_RETURN(values[i], Eval(*stmt.parameters[i].second));
    }
    scope_->Set(name, values[i] ? *values[i] : Value(Undefined{name}));
  }
  PHX_RETURN_IF_ERROR(Execute(stmt.branches[0].body));
  return Value(std::exchange(output_, std::move(outside)).Build());
}

absl::StatusOr<TextBuilder> Run(const Program& program, std::shared_ptr<Scope> scope,
                                std::optional<Date> today, int64_t work) {
  // The template's own variables lie above the globals, as it may set one of the same name.
  auto top = std::make_shared<Scope>();
  top->outer = std::move(scope);
  Interpreter interpreter(top, Context{Budget(work), today});
  PHX_RETURN_IF_ERROR(interpreter.Execute(program.body));
  return interpreter.TakeOutput();
}

}  // namespace phalanx::jinja
