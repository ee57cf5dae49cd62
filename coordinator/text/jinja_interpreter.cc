#include "coordinator/text/jinja_interpreter.h"

#include <algorithm>
#include <limits>
#include <optional>
#include <utility>

#include "absl/strings/str_cat.h"
#include "base/status_macros.h"
#include "base/strings.h"
#include "coordinator/text/jinja_functions.h"
#include "coordinator/text/jinja_lexer.h"

namespace phalanx::jinja {
namespace {

using Kind = Expr::Kind;

constexpr size_t kMaxOutputBytes = size_t{1} << 26;
// One unit is about a byte copied, at most some nanoseconds; an expression and a turn of a loop take this
// besides.
constexpr int64_t kMaxWork = int64_t{1} << 28;
constexpr int64_t kNodeWork = 32;
constexpr int64_t kTurnWork = 512;

absl::Status Invalid(int line, const std::string& message) {
  return ErrorAt(line, absl::StatusCode::kInvalidArgument, message);
}

std::string Describe(const Value& value) {
  if (value.undefined() != nullptr) return absl::StrCat("undefined ('", value.undefined()->name, "')");
  return value.kind();
}

class Interpreter {
 public:
  explicit Interpreter(Dict globals) { scopes_.push_back(std::move(globals)); }

  absl::Status Execute(const Block& block);
  std::string TakeOutput() { return std::move(output_); }

 private:
  absl::Status ExecuteIf(const Stmt& stmt);
  absl::Status ExecuteFor(const Stmt& stmt);
  absl::Status ExecuteSet(const Stmt& stmt);
  absl::Status Output(std::string_view text, int line);

  absl::StatusOr<Value> Eval(const Expr& expr);
  absl::StatusOr<Value> EvalAttribute(const Expr& expr);
  absl::StatusOr<Value> EvalIndex(const Expr& expr);
  absl::StatusOr<Value> EvalSlice(const Expr& expr);
  absl::StatusOr<Value> EvalUnary(const Expr& expr);
  absl::StatusOr<Value> EvalBinary(const Expr& expr);
  absl::StatusOr<Value> EvalArithmetic(const Expr& expr, const Value& left, const Value& right);
  absl::StatusOr<Value> EvalOrder(const Expr& expr, const Value& left, const Value& right);
  absl::StatusOr<Value> EvalIn(const Expr& expr, const Value& left, const Value& right);
  absl::StatusOr<Value> EvalCall(const Expr& expr);
  absl::StatusOr<Value> EvalTest(const Expr& expr);

  const Value* Lookup(std::string_view name) const {
    for (auto scope = scopes_.rbegin(); scope != scopes_.rend(); ++scope) {
      if (const Value* value = scope->Find(name)) return value;
    }
    return nullptr;
  }
  absl::Status Charge(int64_t work, int line) {
    work_ += work;
    if (work_ <= kMaxWork) return absl::OkStatus();
    return ErrorAt(line, absl::StatusCode::kResourceExhausted, "the chat template takes too much work");
  }
  // For looking at a value once: lists and mappings are shared, not copied.
  absl::Status ChargeFor(const Value& value, int line) {
    if (value.list() != nullptr) return Charge(static_cast<int64_t>(value.list()->items.size()), line);
    return Charge(value.dict() != nullptr ? kNodeWork : value.extent().weight, line);
  }
  static absl::Status AtLine(const absl::Status& status, int line) {
    return status.ok() ? status : ErrorAt(line, status.code(), std::string(status.message()));
  }

  std::vector<Dict> scopes_;  // innermost last
  std::string output_;
  int64_t work_ = 0;
};

absl::Status Interpreter::Output(std::string_view text, int line) {
  if (text.size() > kMaxOutputBytes - output_.size()) {
    return ErrorAt(line, absl::StatusCode::kResourceExhausted,
                   absl::StrCat("the chat template renders more than ", kMaxOutputBytes, " bytes"));
  }
  output_.append(text);
  return Charge(static_cast<int64_t>(text.size()), line);
}

absl::Status Interpreter::Execute(const Block& block) {
  for (const Stmt& stmt : block) {
    PHX_RETURN_IF_ERROR(Charge(kNodeWork, stmt.line));
    switch (stmt.kind) {
      case Stmt::Kind::kText:
        PHX_RETURN_IF_ERROR(Output(stmt.text, stmt.line));
        break;
      case Stmt::Kind::kOutput: {
        PHX_ASSIGN_OR_RETURN(const Value value, Eval(*stmt.expr));
        if (const std::string* text = value.string()) {
          PHX_RETURN_IF_ERROR(Output(*text, stmt.line));
          break;
        }
        const absl::StatusOr<std::string> text = ToText(value);
        PHX_RETURN_IF_ERROR(AtLine(text.status(), stmt.line));
        PHX_RETURN_IF_ERROR(Output(*text, stmt.line));
        break;
      }
      case Stmt::Kind::kIf:
        PHX_RETURN_IF_ERROR(ExecuteIf(stmt));
        break;
      case Stmt::Kind::kFor:
        PHX_RETURN_IF_ERROR(ExecuteFor(stmt));
        break;
      case Stmt::Kind::kSet:
        PHX_RETURN_IF_ERROR(ExecuteSet(stmt));
        break;
    }
  }
  return absl::OkStatus();
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
  std::vector<Value> items;
  if (over.list() != nullptr) {
    items = over.list()->items;
  } else if (over.dict() != nullptr) {
    for (const auto& entry : over.dict()->entries) items.push_back(Value::Str(entry.first));
  } else if (!over.is_undefined()) {
    return over.string() != nullptr
               ? ErrorAt(stmt.line, absl::StatusCode::kUnimplemented, "a for over the characters of a string")
               : Invalid(stmt.line,
                         absl::StrCat("a for over ", Describe(over), ", which cannot be iterated"));
  }
  PHX_RETURN_IF_ERROR(Charge(static_cast<int64_t>(items.size()) * kNodeWork, stmt.line));
  if (stmt.filter != nullptr) {
    std::vector<Value> kept;
    for (Value& item : items) {
      scopes_.emplace_back();
      scopes_.back().Set(stmt.name, item);
      PHX_ASSIGN_OR_RETURN(const Value condition, Eval(*stmt.filter));
      scopes_.pop_back();
      if (condition.truthy()) kept.push_back(std::move(item));
    }
    items = std::move(kept);
  }
  if (items.empty()) return Execute(stmt.otherwise);

  const auto count = static_cast<int64_t>(items.size());
  for (int64_t i = 0; i < count; ++i) {
    PHX_RETURN_IF_ERROR(Charge(kTurnWork, stmt.line));
    Dict loop;
    loop.Set("index", Value::Int(i + 1));
    loop.Set("index0", Value::Int(i));
    loop.Set("revindex", Value::Int(count - i));
    loop.Set("revindex0", Value::Int(count - i - 1));
    loop.Set("first", Value::Bool(i == 0));
    loop.Set("last", Value::Bool(i == count - 1));
    loop.Set("length", Value::Int(count));
    loop.Set("previtem", i > 0 ? items[i - 1] : Value(Undefined{"there is no previous item"}));
    loop.Set("nextitem", i + 1 < count ? items[i + 1] : Value(Undefined{"there is no next item"}));
    absl::StatusOr<Value> loop_value = Value::MakeDict(std::move(loop));
    PHX_RETURN_IF_ERROR(AtLine(loop_value.status(), stmt.line));
    scopes_.emplace_back();
    scopes_.back().Set("loop", *std::move(loop_value));
    scopes_.back().Set(stmt.name, items[i]);
    PHX_RETURN_IF_ERROR(Execute(stmt.branches[0].body));
    scopes_.pop_back();
  }
  return absl::OkStatus();
}

absl::Status Interpreter::ExecuteSet(const Stmt& stmt) {
  PHX_ASSIGN_OR_RETURN(Value value, Eval(*stmt.expr));
  if (stmt.attribute.empty()) {
    scopes_.back().Set(stmt.name, std::move(value));
    return absl::OkStatus();
  }
  const Value* target = Lookup(stmt.name);
  if (target == nullptr || target->name_space() == nullptr) {
    return Invalid(stmt.line, absl::StrCat("set ", stmt.name, ".", stmt.attribute, ": '", stmt.name,
                                           "' is no namespace"));
  }
  if (value.name_space() != nullptr) {
    return ErrorAt(stmt.line, absl::StatusCode::kUnimplemented, "a namespace inside another value");
  }
  target->name_space()->Set(stmt.attribute, std::move(value));
  return absl::OkStatus();
}

absl::StatusOr<Value> Interpreter::Eval(const Expr& expr) {
  PHX_RETURN_IF_ERROR(Charge(kNodeWork, expr.line));
  switch (expr.kind) {
    case Kind::kLiteral:
      return expr.value;
    case Kind::kName: {
      const Value* value = Lookup(expr.name);
      return value != nullptr ? *value : Value(Undefined{expr.name});
    }
    case Kind::kList: {
      std::vector<Value> items;
      for (const ExprPtr& arg : expr.args) {
        PHX_ASSIGN_OR_RETURN(Value item, Eval(*arg));
        items.push_back(std::move(item));
      }
      absl::StatusOr<Value> list = Value::MakeList(std::move(items));
      PHX_RETURN_IF_ERROR(AtLine(list.status(), expr.line));
      return list;
    }
    case Kind::kAttribute:
      return EvalAttribute(expr);
    case Kind::kIndex:
      return EvalIndex(expr);
    case Kind::kSlice:
      return EvalSlice(expr);
    case Kind::kUnary:
      return EvalUnary(expr);
    case Kind::kBinary:
      return EvalBinary(expr);
    case Kind::kNot: {
      PHX_ASSIGN_OR_RETURN(const Value value, Eval(*expr.args[0]));
      return Value::Bool(!value.truthy());
    }
    case Kind::kAnd:
    case Kind::kOr: {
      PHX_ASSIGN_OR_RETURN(Value left, Eval(*expr.args[0]));
      if (left.truthy() == (expr.kind == Kind::kOr)) return left;
      return Eval(*expr.args[1]);
    }
    case Kind::kConditional: {
      PHX_ASSIGN_OR_RETURN(const Value condition, Eval(*expr.args[1]));
      if (condition.truthy()) return Eval(*expr.args[0]);
      if (expr.args[2] != nullptr) return Eval(*expr.args[2]);
      return Value(Undefined{"an if without else"});
    }
    case Kind::kTest:
      return EvalTest(expr);
    case Kind::kFilter:
    case Kind::kMethod:
    case Kind::kCall:
      return EvalCall(expr);
  }
  return absl::InternalError("unknown kind of expression");
}

absl::StatusOr<Value> Interpreter::EvalAttribute(const Expr& expr) {
  PHX_ASSIGN_OR_RETURN(const Value object, Eval(*expr.args[0]));
  if (object.is_undefined()) {
    return Invalid(expr.line, absl::StrCat("'", object.undefined()->name, "' is undefined and has no '",
                                           expr.name, "'"));
  }
  const Dict* dict = object.dict() != nullptr ? object.dict() : object.name_space();
  const Value* value = dict == nullptr ? nullptr : dict->Find(expr.name);
  return value != nullptr ? *value : Value(Undefined{expr.name});
}

absl::StatusOr<Value> Interpreter::EvalIndex(const Expr& expr) {
  PHX_ASSIGN_OR_RETURN(const Value object, Eval(*expr.args[0]));
  PHX_ASSIGN_OR_RETURN(const Value index, Eval(*expr.args[1]));
  if (object.is_undefined()) {
    return Invalid(expr.line,
                   absl::StrCat("'", object.undefined()->name, "' is undefined and cannot be indexed"));
  }
  const Dict* dict = object.dict() != nullptr ? object.dict() : object.name_space();
  if (dict != nullptr && index.string() != nullptr) {
    const Value* value = dict->Find(*index.string());
    return value != nullptr ? *value : Value(Undefined{*index.string()});
  }
  if (index.number() && (object.list() != nullptr || object.string() != nullptr)) {
    int64_t i = *index.number();
    if (const List* list = object.list()) {
      const auto size = static_cast<int64_t>(list->items.size());
      if (i < 0) i += size;
      if (i >= 0 && i < size) return list->items[i];
    } else {
      PHX_RETURN_IF_ERROR(ChargeFor(object, expr.line));
      const std::vector<size_t> offsets = CharacterOffsets(*object.string());
      const auto size = static_cast<int64_t>(offsets.size()) - 1;
      if (i < 0) i += size;
      if (i >= 0 && i < size)
        return Value::Str(object.string()->substr(offsets[i], offsets[i + 1] - offsets[i]));
    }
    return Value(Undefined{absl::StrCat("index ", *index.number())});
  }
  return Value(Undefined{absl::StrCat(Describe(object), " indexed by ", Describe(index))});
}

absl::StatusOr<Value> Interpreter::EvalSlice(const Expr& expr) {
  PHX_ASSIGN_OR_RETURN(const Value object, Eval(*expr.args[0]));
  std::optional<int64_t> bounds[3];
  for (int part = 0; part < 3; ++part) {
    if (expr.args[part + 1] == nullptr) continue;
    PHX_ASSIGN_OR_RETURN(const Value bound, Eval(*expr.args[part + 1]));
    if (bound.is_none()) continue;
    if (bound.integer() == nullptr) {
      return Invalid(expr.line,
                     absl::StrCat("a slice's bound is ", Describe(bound), ", must be an int or none"));
    }
    bounds[part] = *bound.integer();
  }
  if (object.list() == nullptr && object.string() == nullptr) {
    return Invalid(expr.line, absl::StrCat("a slice of ", Describe(object), ", must be of a list or a str"));
  }
  PHX_RETURN_IF_ERROR(ChargeFor(object, expr.line));
  absl::StatusOr<Value> slice = Slice(object, bounds);
  PHX_RETURN_IF_ERROR(AtLine(slice.status(), expr.line));
  return slice;
}

absl::StatusOr<Value> Interpreter::EvalUnary(const Expr& expr) {
  PHX_ASSIGN_OR_RETURN(const Value value, Eval(*expr.args[0]));
  int64_t result = 0;
  if (!value.number()) {
    return Invalid(expr.line,
                   absl::StrCat("unary ", expr.name, " of ", Describe(value), ", must be of an int"));
  }
  if (expr.name == "+") return Value::Int(*value.number());
  if (__builtin_sub_overflow(int64_t{0}, *value.number(), &result)) {
    return Invalid(expr.line, "the result does not fit 64 bits");
  }
  return Value::Int(result);
}

absl::StatusOr<Value> Interpreter::EvalBinary(const Expr& expr) {
  PHX_ASSIGN_OR_RETURN(const Value left, Eval(*expr.args[0]));
  PHX_ASSIGN_OR_RETURN(const Value right, Eval(*expr.args[1]));
  if (expr.name == "==" || expr.name == "!=") {
    PHX_RETURN_IF_ERROR(Charge(std::min(left.extent().weight, right.extent().weight), expr.line));
    return Value::Bool(left.Equals(right) == (expr.name == "=="));
  }
  if (expr.name == "in") return EvalIn(expr, left, right);
  if (expr.name == "<" || expr.name == "<=" || expr.name == ">" || expr.name == ">=") {
    return EvalOrder(expr, left, right);
  }
  if (expr.name == "~" || (expr.name == "+" && left.string() != nullptr && right.string() != nullptr)) {
    PHX_RETURN_IF_ERROR(ChargeFor(left, expr.line));
    PHX_RETURN_IF_ERROR(ChargeFor(right, expr.line));
    absl::StatusOr<std::string> a = ToText(left), b = ToText(right);
    PHX_RETURN_IF_ERROR(AtLine(a.status(), expr.line));
    PHX_RETURN_IF_ERROR(AtLine(b.status(), expr.line));
    return Value::Str(*std::move(a) + *b);
  }
  return EvalArithmetic(expr, left, right);
}

absl::StatusOr<Value> Interpreter::EvalArithmetic(const Expr& expr, const Value& left, const Value& right) {
  if (expr.name == "+" && left.list() != nullptr && right.list() != nullptr) {
    std::vector<Value> items = left.list()->items;
    items.insert(items.end(), right.list()->items.begin(), right.list()->items.end());
    PHX_RETURN_IF_ERROR(Charge(static_cast<int64_t>(items.size()) * kNodeWork, expr.line));
    absl::StatusOr<Value> list = Value::MakeList(std::move(items));
    PHX_RETURN_IF_ERROR(AtLine(list.status(), expr.line));
    return list;
  }
  // What Python does with sequences here: repetition and formatting.
  if ((expr.name == "*" && (left.list() != nullptr || left.string() != nullptr || right.list() != nullptr ||
                            right.string() != nullptr)) ||
      (expr.name == "%" && left.string() != nullptr)) {
    return ErrorAt(
        expr.line, absl::StatusCode::kUnimplemented,
        absl::StrCat("operator ", expr.name, " between ", Describe(left), " and ", Describe(right)));
  }
  if (!left.number() || !right.number()) {
    return Invalid(expr.line, absl::StrCat("operator ", expr.name, " between ", Describe(left), " and ",
                                           Describe(right)));
  }
  const int64_t a = *left.number(), b = *right.number();
  int64_t result = 0;
  bool overflow = false;
  if (expr.name == "+") overflow = __builtin_add_overflow(a, b, &result);
  if (expr.name == "-") overflow = __builtin_sub_overflow(a, b, &result);
  if (expr.name == "*") overflow = __builtin_mul_overflow(a, b, &result);
  if (expr.name == "//" || expr.name == "%") {
    if (b == 0) return Invalid(expr.line, "division by zero");
    overflow = a == std::numeric_limits<int64_t>::min() && b == -1;
    if (!overflow) {  // towards minus infinity, as Python does
      const bool down = a % b != 0 && (a < 0) != (b < 0);
      result = expr.name == "//" ? a / b - (down ? 1 : 0) : a % b + (down ? b : 0);
    }
  }
  if (overflow)
    return Invalid(expr.line, absl::StrCat("operator ", expr.name, ": the result does not fit 64 bits"));
  return Value::Int(result);
}

absl::StatusOr<Value> Interpreter::EvalOrder(const Expr& expr, const Value& left, const Value& right) {
  int order = 0;
  if (left.number() && right.number()) {
    order = *left.number() < *right.number() ? -1 : *left.number() > *right.number() ? 1 : 0;
  } else if (left.string() != nullptr && right.string() != nullptr) {
    PHX_RETURN_IF_ERROR(ChargeFor(left, expr.line));
    order = left.string()->compare(*right.string());  // UTF-8 sorts as its code points do
  } else if (left.list() != nullptr && right.list() != nullptr) {
    return ErrorAt(expr.line, absl::StatusCode::kUnimplemented,
                   absl::StrCat("operator ", expr.name, " between lists"));
  } else {
    return Invalid(expr.line, absl::StrCat("operator ", expr.name, " between ", Describe(left), " and ",
                                           Describe(right)));
  }
  const bool less = expr.name[0] == '<', or_equal = expr.name.size() == 2;
  return Value::Bool((less ? order < 0 : order > 0) || (or_equal && order == 0));
}

absl::StatusOr<Value> Interpreter::EvalIn(const Expr& expr, const Value& left, const Value& right) {
  PHX_RETURN_IF_ERROR(ChargeFor(right, expr.line));
  if (right.is_undefined()) return Value::Bool(false);
  if (right.list() != nullptr) {
    for (const Value& item : right.list()->items) {
      PHX_RETURN_IF_ERROR(Charge(std::min(left.extent().weight, item.extent().weight), expr.line));
      if (item.Equals(left)) return Value::Bool(true);
    }
    return Value::Bool(false);
  }
  if (right.dict() != nullptr && left.list() == nullptr && left.dict() == nullptr) {
    return Value::Bool(left.string() != nullptr && right.dict()->Find(*left.string()) != nullptr);
  }
  if (right.string() != nullptr && left.string() != nullptr) {
    return Value::Bool(FindText(*right.string(), *left.string(), 0) != std::string::npos);
  }
  return Invalid(expr.line, absl::StrCat("operator in between ", Describe(left), " and ", Describe(right)));
}

absl::StatusOr<Value> Interpreter::EvalTest(const Expr& expr) {
  const Expr& subject = *expr.args[0];
  PHX_ASSIGN_OR_RETURN(const Value value, Eval(subject));
  // Functions are no values here, but they are defined.
  if (subject.kind == Kind::kName && value.is_undefined() &&
      (expr.name == "defined" || expr.name == "undefined") && IsFunction(subject.name)) {
    return Value::Bool(expr.name == "defined");
  }
  PHX_ASSIGN_OR_RETURN(const bool result, CallTest(expr.name, value));
  return Value::Bool(result);
}

absl::StatusOr<Value> Interpreter::EvalCall(const Expr& expr) {
  Value input;
  const size_t inputs = expr.kind == Kind::kCall ? 0 : 1;
  if (inputs == 1) {
    PHX_ASSIGN_OR_RETURN(input, Eval(*expr.args[0]));
    PHX_RETURN_IF_ERROR(expr.name == "tojson" ? Charge(input.extent().weight, expr.line)
                                              : ChargeFor(input, expr.line));
  }
  Arguments arguments;
  for (size_t i = inputs; i < expr.args.size(); ++i) {
    PHX_ASSIGN_OR_RETURN(Value value, Eval(*expr.args[i]));
    PHX_RETURN_IF_ERROR(ChargeFor(value, expr.line));
    arguments.positional.push_back(std::move(value));
  }
  for (const auto& keyword : expr.keywords) {
    PHX_ASSIGN_OR_RETURN(Value value, Eval(*keyword.second));
    arguments.keywords.emplace_back(keyword.first, std::move(value));
  }
  absl::StatusOr<Value> result;
  if (expr.kind == Kind::kFilter) {
    result = CallFilter(expr.name, input, arguments);
  } else if (expr.kind == Kind::kMethod) {
    result = CallMethod(expr.name, input, arguments);
  } else if (expr.name == "raise_exception") {
    absl::StatusOr<std::string> message = ToText(arguments.positional[0]);
    PHX_RETURN_IF_ERROR(AtLine(message.status(), expr.line));
    return absl::InvalidArgumentError(*message);
  } else {
    result = CallFunction(expr.name, arguments);
  }
  PHX_RETURN_IF_ERROR(AtLine(result.status(), expr.line));
  PHX_RETURN_IF_ERROR(ChargeFor(*result, expr.line));
  return result;
}

}  // namespace

absl::StatusOr<std::string> Run(const Program& program, Dict variables) {
  Interpreter interpreter(std::move(variables));
  PHX_RETURN_IF_ERROR(interpreter.Execute(program.body));
  return interpreter.TakeOutput();
}

}  // namespace phalanx::jinja
