// Expressions.
#include "absl/strings/str_cat.h"
#include "base/status_macros.h"
#include "coordinator/text/jinja_interpreter.h"
#include "coordinator/text/jinja_lexer.h"

namespace phalanx::jinja {
namespace {

using Kind = Expr::Kind;

constexpr int64_t kExpressionWork = 32;

}  // namespace

absl::StatusOr<Value> Interpreter::Eval(const Expr& expr) {
  PHX_RETURN_IF_ERROR(Charge(kExpressionWork, expr.line));
  if (expr.kind == Kind::kLiteral) return expr.value;
  if (expr.kind == Kind::kName) return EvalName(expr);
  PHX_RETURN_IF_ERROR(Deeper(expr.line));
  absl::StatusOr<Value> value = EvalNow(expr);
  --depth_;
  return AtLine(std::move(value), expr.line);
}

absl::StatusOr<Value> Interpreter::EvalNow(const Expr& expr) {
  switch (expr.kind) {
    case Kind::kLiteral:
      return expr.value;
    case Kind::kName:
      return EvalName(expr);
    case Kind::kList:
    case Kind::kTuple:
      return EvalItems(expr);
    case Kind::kDict:
      return EvalDict(expr);
    case Kind::kAttribute: {
      PHX_ASSIGN_OR_RETURN(const Value object, Eval(*expr.args[0]));
      return GetAttribute(object, expr.name, &context_.budget);
    }
    case Kind::kIndex: {
      PHX_ASSIGN_OR_RETURN(const Value object, Eval(*expr.args[0]));
      PHX_ASSIGN_OR_RETURN(const Value index, Eval(*expr.args[1]));
      return GetItem(object, index, &context_.budget);
    }
    case Kind::kSlice:
      return EvalSlice(expr);
    case Kind::kUnary: {
      PHX_ASSIGN_OR_RETURN(const Value value, Eval(*expr.args[0]));
      if (expr.name == "-") return Negate(value);
      if (value.real() != nullptr) return value;
      if (!value.number()) return WrongType("unary +", value, "a number");
      return Value::Int(*value.number());
    }
    case Kind::kBinary:
      return EvalBinary(expr);
    case Kind::kConcat:
      return EvalConcat(expr);
    case Kind::kCompare:
      return EvalCompare(expr);
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
    case Kind::kConditional:
      return EvalConditional(expr);
    case Kind::kTest:
      return EvalTest(expr);
    case Kind::kFilter: {
      Value input;
      if (expr.args[0] != nullptr) {
        PHX_ASSIGN_OR_RETURN(input, Eval(*expr.args[0]));
      }
      return ApplyFilter(expr, input);
    }
    case Kind::kCall:
      return EvalCall(expr);
  }
  return absl::InternalError("unknown kind of expression");
}

absl::StatusOr<Value> Interpreter::EvalName(const Expr& expr) {
  if (const Value* value = scope_->Find(expr.name)) return *value;
  if (IsFunction(expr.name, context_)) return Value::MakeFunction(expr.name);
  return Value(Undefined{expr.name});
}

absl::StatusOr<Value> Interpreter::EvalItems(const Expr& expr) {
  std::vector<Value> items;
  for (const ExprPtr& arg : expr.args) {
    PHX_ASSIGN_OR_RETURN(Value item, Eval(*arg));
    items.push_back(std::move(item));
  }
  return Value::MakeList(std::move(items),
                         expr.kind == Kind::kTuple ? List::Kind::kTuple : List::Kind::kList);
}

absl::StatusOr<Value> Interpreter::EvalDict(const Expr& expr) {
  Dict dict;
  for (size_t i = 0; i < expr.args.size(); i += 2) {
    PHX_ASSIGN_OR_RETURN(const Value key, Eval(*expr.args[i]));
    PHX_ASSIGN_OR_RETURN(Value value, Eval(*expr.args[i + 1]));
    if (!IsKey(key)) return WrongType("a key of a mapping", key, "a str, number, none or tuple");
    PHX_RETURN_IF_ERROR(Charge(static_cast<int64_t>(dict.entries.size()), expr.line));
    dict.Set(key, std::move(value));
  }
  return Value::MakeDict(std::move(dict));
}

absl::StatusOr<Value> Interpreter::EvalSlice(const Expr& expr) {
  PHX_ASSIGN_OR_RETURN(const Value object, Eval(*expr.args[0]));
  Value bounds[3];
  for (size_t part = 0; part < 3; ++part) {
    if (expr.args[part + 1] == nullptr) continue;
    PHX_ASSIGN_OR_RETURN(bounds[part], Eval(*expr.args[part + 1]));
  }
  return Slice(object, bounds, &context_.budget);
}

absl::StatusOr<Value> Interpreter::EvalBinary(const Expr& expr) {
  PHX_ASSIGN_OR_RETURN(const Value left, Eval(*expr.args[0]));
  PHX_ASSIGN_OR_RETURN(const Value right, Eval(*expr.args[1]));
  return Arithmetic(expr.name, left, right, &context_.budget);
}

absl::StatusOr<Value> Interpreter::EvalConcat(const Expr& expr) {
  Text text;
  for (const ExprPtr& arg : expr.args) {
    PHX_ASSIGN_OR_RETURN(const Value value, Eval(*arg));
    if (value.text() == nullptr) PHX_RETURN_IF_ERROR(Charge(value.extent().weight * 4, expr.line));
    PHX_ASSIGN_OR_RETURN(const Text part, ToText(value));
    PHX_ASSIGN_OR_RETURN(text, Concat(text, part.AsPlain(), &context_.budget));
  }
  return Value(std::move(text));
}

absl::StatusOr<Value> Interpreter::EvalCompare(const Expr& expr) {
  PHX_ASSIGN_OR_RETURN(Value left, Eval(*expr.args[0]));
  for (size_t i = 0; i < expr.operators.size(); ++i) {
    PHX_ASSIGN_OR_RETURN(Value right, Eval(*expr.args[i + 1]));
    PHX_ASSIGN_OR_RETURN(const bool holds, Compare(expr.operators[i], left, right, &context_.budget));
    if (!holds) return Value::Bool(false);
    left = std::move(right);
  }
  return Value::Bool(true);
}

absl::StatusOr<Value> Interpreter::EvalConditional(const Expr& expr) {
  PHX_ASSIGN_OR_RETURN(const Value condition, Eval(*expr.args[1]));
  if (condition.truthy()) return Eval(*expr.args[0]);
  if (expr.args[2] != nullptr) return Eval(*expr.args[2]);
  return Value(Undefined{"an if without else"});
}

absl::StatusOr<Arguments> Interpreter::EvalArguments(const Expr& expr) {
  Arguments arguments;
  for (size_t i = 1; i < expr.args.size(); ++i) {
    PHX_ASSIGN_OR_RETURN(Value value, Eval(*expr.args[i]));
    arguments.positional.push_back(std::move(value));
  }
  for (const auto& keyword : expr.keywords) {
    PHX_ASSIGN_OR_RETURN(Value value, Eval(*keyword.second));
    arguments.keywords.emplace_back(keyword.first, std::move(value));
  }
  return arguments;
}

absl::StatusOr<Value> Interpreter::EvalTest(const Expr& expr) {
  PHX_ASSIGN_OR_RETURN(const Value input, Eval(*expr.args[0]));
  PHX_ASSIGN_OR_RETURN(const Arguments arguments, EvalArguments(expr));
  PHX_ASSIGN_OR_RETURN(const bool passes, CallTest(expr.name, input, arguments, &context_));
  return Value::Bool(passes);
}

absl::StatusOr<Value> Interpreter::ApplyFilter(const Expr& expr, const Value& input) {
  PHX_ASSIGN_OR_RETURN(const Arguments arguments, EvalArguments(expr));
  return AtLine(CallFilter(expr.name, input, arguments, &context_), expr.line);
}

absl::StatusOr<Value> Interpreter::EvalCall(const Expr& expr) {
  PHX_ASSIGN_OR_RETURN(const Value callee, Eval(*expr.args[0]));
  PHX_ASSIGN_OR_RETURN(const Arguments arguments, EvalArguments(expr));
  if (callee.macro() != nullptr) return CallMacro(*callee.macro(), arguments, expr.line);
  if (const Function* function = callee.function()) {
    if (function->self != nullptr) return CallMethod(function->name, *function->self, arguments, &context_);
    return CallFunction(function->name, arguments, &context_);
  }
  if (callee.is_undefined()) {
    return absl::InvalidArgumentError(absl::StrCat(
        "'", callee.undefined()->name,
        "' is undefined and cannot be called; functions: raise_exception, namespace, range, dict",
        context_.today ? ", strftime_now" : ""));
  }
  return absl::InvalidArgumentError(absl::StrCat("a ", callee.kind(), " cannot be called"));
}

}  // namespace phalanx::jinja
