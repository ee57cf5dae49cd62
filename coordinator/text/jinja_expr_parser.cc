#include "coordinator/text/jinja_expr_parser.h"

#include "absl/strings/escaping.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "base/status_macros.h"
#include "base/strings.h"
#include "coordinator/text/jinja_functions.h"

namespace phalanx::jinja {
namespace {

using Kind = Expr::Kind;

template <typename... Args>
std::vector<ExprPtr> MakeArgs(Args... args) {
  std::vector<ExprPtr> list;
  (list.push_back(std::move(args)), ...);
  return list;
}

}  // namespace

absl::Status ExprParser::Unexpected(const std::string& wanted) const {
  const std::string found =
      Now().kind == Token::Kind::kEnd ? "the template's end" : absl::CEscape(Now().text.substr(0, 40));
  return ErrorAt(Now().line, absl::StatusCode::kInvalidArgument,
                 absl::StrCat("found ", found, ", ", wanted, " was expected"));
}

absl::Status ExprParser::Unsupported(int line, const std::string& what) {
  return ErrorAt(line, absl::StatusCode::kUnimplemented, absl::StrCat(what, " is not supported"));
}

absl::Status ExprParser::ExpectOp(std::string_view op) {
  if (!SkipOp(op)) return Unexpected(std::string(op));
  return absl::OkStatus();
}

absl::StatusOr<std::string> ExprParser::ExpectName() {
  if (Now().kind != Token::Kind::kName) return Unexpected("a name");
  return Take().text;
}

absl::Status ExprParser::ExpectEnd(Token::Kind kind) {
  if (Now().kind != kind) return Unexpected(kind == Token::Kind::kBlockEnd ? "%}" : "}}");
  Take();
  return absl::OkStatus();
}

absl::StatusOr<ExprPtr> ExprParser::Node(Expr::Kind kind, int line, std::string name,
                                         std::vector<ExprPtr> args) {
  auto expr = std::make_unique<Expr>(Expr{kind, line});
  expr->name = std::move(name);
  expr->args = std::move(args);
  PHX_RETURN_IF_ERROR(Measure(expr.get()));
  return expr;
}

absl::Status ExprParser::Measure(Expr* expr) {
  for (const ExprPtr& arg : expr->args) {
    if (arg != nullptr) expr->depth = std::max(expr->depth, arg->depth + 1);
  }
  for (const auto& keyword : expr->keywords) expr->depth = std::max(expr->depth, keyword.second->depth + 1);
  if (expr->depth > kMaxExprDepth) return Unsupported(expr->line, "an expression this deep");
  return absl::OkStatus();
}

absl::StatusOr<ExprPtr> ExprParser::LeftAssociative(const std::vector<std::string_view>& ops,
                                                    absl::StatusOr<ExprPtr> (ExprParser::*next)()) {
  PHX_ASSIGN_OR_RETURN(ExprPtr left, (this->*next)());
  while (Now().kind == Token::Kind::kOperator && std::find(ops.begin(), ops.end(), Now().text) != ops.end()) {
    const Token op = Take();
    PHX_ASSIGN_OR_RETURN(ExprPtr right, (this->*next)());
    PHX_ASSIGN_OR_RETURN(left,
                         Node(Kind::kBinary, op.line, op.text, MakeArgs(std::move(left), std::move(right))));
  }
  return left;
}

absl::StatusOr<ExprPtr> ExprParser::ParseConditional() {
  PHX_ASSIGN_OR_RETURN(ExprPtr expr, ParseOr());
  while (IsName("if")) {
    const int line = Take().line;
    PHX_ASSIGN_OR_RETURN(ExprPtr condition, ParseOr());
    ExprPtr otherwise;
    if (SkipName("else")) {
      PHX_ASSIGN_OR_RETURN(otherwise, Deeper(&ExprParser::ParseConditional));
    }
    PHX_ASSIGN_OR_RETURN(expr, Node(Kind::kConditional, line, "",
                                    MakeArgs(std::move(expr), std::move(condition), std::move(otherwise))));
  }
  return expr;
}

absl::StatusOr<ExprPtr> ExprParser::ParseOr() {
  PHX_ASSIGN_OR_RETURN(ExprPtr left, ParseAnd());
  while (IsName("or")) {
    const int line = Take().line;
    PHX_ASSIGN_OR_RETURN(ExprPtr right, ParseAnd());
    PHX_ASSIGN_OR_RETURN(left, Node(Kind::kOr, line, "", MakeArgs(std::move(left), std::move(right))));
  }
  return left;
}

absl::StatusOr<ExprPtr> ExprParser::ParseAnd() {
  PHX_ASSIGN_OR_RETURN(ExprPtr left, ParseNot());
  while (IsName("and")) {
    const int line = Take().line;
    PHX_ASSIGN_OR_RETURN(ExprPtr right, ParseNot());
    PHX_ASSIGN_OR_RETURN(left, Node(Kind::kAnd, line, "", MakeArgs(std::move(left), std::move(right))));
  }
  return left;
}

absl::StatusOr<ExprPtr> ExprParser::ParseNot() {
  if (!IsName("not")) return ParseCompare();
  const int line = Take().line;
  PHX_ASSIGN_OR_RETURN(ExprPtr expr, Deeper(&ExprParser::ParseNot));
  return Node(Kind::kNot, line, "", MakeArgs(std::move(expr)));
}

absl::StatusOr<ExprPtr> ExprParser::ParseCompare() {
  PHX_ASSIGN_OR_RETURN(ExprPtr left, ParseSum());
  ExprPtr compare;
  while (true) {
    const int line = Now().line;
    std::string op;
    if (IsOp("==") || IsOp("!=") || IsOp("<") || IsOp("<=") || IsOp(">") || IsOp(">=") || IsName("in")) {
      op = Take().text;
    } else if (IsName("not") && Ahead(1).kind == Token::Kind::kName && Ahead(1).text == "in") {
      Take(), Take();
      op = "not in";
    } else {
      break;
    }
    PHX_ASSIGN_OR_RETURN(ExprPtr right, ParseSum());
    if (compare == nullptr) {
      PHX_ASSIGN_OR_RETURN(compare, Node(Kind::kCompare, line, "", MakeArgs(std::move(left))));
    }
    compare->operators.push_back(std::move(op));
    compare->args.push_back(std::move(right));
    PHX_RETURN_IF_ERROR(Measure(compare.get()));
  }
  return compare != nullptr ? std::move(compare) : std::move(left);
}

absl::StatusOr<ExprPtr> ExprParser::ParseSum() {
  return LeftAssociative({"+", "-"}, &ExprParser::ParseConcat);
}

absl::StatusOr<ExprPtr> ExprParser::ParseConcat() {
  PHX_ASSIGN_OR_RETURN(ExprPtr first, ParseProduct());
  if (!IsOp("~")) return first;
  const int line = Now().line;
  std::vector<ExprPtr> args = MakeArgs(std::move(first));
  while (SkipOp("~")) {
    PHX_ASSIGN_OR_RETURN(ExprPtr next, ParseProduct());
    args.push_back(std::move(next));
  }
  return Node(Kind::kConcat, line, "", std::move(args));
}

absl::StatusOr<ExprPtr> ExprParser::ParseProduct() {
  return LeftAssociative({"*", "/", "//", "%"}, &ExprParser::ParsePower);
}

absl::StatusOr<ExprPtr> ExprParser::ParsePower() {
  return LeftAssociative({"**"}, &ExprParser::ParseOperand);
}

absl::StatusOr<ExprPtr> ExprParser::ParseOperand() { return ParseUnary(/*with_filter=*/true); }

absl::StatusOr<ExprPtr> ExprParser::ParseUnary(bool with_filter) {
  ExprPtr expr;
  if (IsOp("-") || IsOp("+")) {
    if (++nesting_ > kMaxNesting) return Unsupported(Now().line, "an expression this deep");
    const Token op = Take();
    PHX_ASSIGN_OR_RETURN(expr, ParseUnary(false));
    --nesting_;
    PHX_ASSIGN_OR_RETURN(expr, Node(Kind::kUnary, op.line, op.text, MakeArgs(std::move(expr))));
  } else {
    PHX_ASSIGN_OR_RETURN(expr, ParsePrimary());
  }
  PHX_ASSIGN_OR_RETURN(expr, ParsePostfix(std::move(expr)));
  return with_filter ? ParseFilters(std::move(expr)) : std::move(expr);
}

absl::StatusOr<ExprPtr> ExprParser::ParsePrimary() {
  const Token token = Now();
  auto literal = std::make_unique<Expr>(Expr{Kind::kLiteral, token.line});
  switch (token.kind) {
    case Token::Kind::kString: {
      std::string text;
      while (Now().kind == Token::Kind::kString) text += Take().text;
      literal->value = Value::Str(std::move(text));
      return literal;
    }
    case Token::Kind::kInteger: {
      Take();
      int64_t number = 0;
      if (!absl::SimpleAtoi(token.text, &number)) {
        return ErrorAt(token.line, absl::StatusCode::kInvalidArgument,
                       absl::StrCat("integer ", token.text.substr(0, 40), " does not fit 64 bits"));
      }
      literal->value = Value::Int(number);
      return literal;
    }
    case Token::Kind::kFloat: {
      Take();
      double number = 0;
      if (!absl::SimpleAtod(token.text, &number)) return Unexpected("a number");
      literal->value = Value::Float(number);
      return literal;
    }
    case Token::Kind::kName:
      if (token.text == "true" || token.text == "True" || token.text == "false" || token.text == "False") {
        literal->value = Value::Bool(token.text[0] == 't' || token.text[0] == 'T');
      } else if (token.text == "none" || token.text == "None") {
        literal->value = Value();
      } else if (token.text == "and" || token.text == "or" || token.text == "not" || token.text == "in" ||
                 token.text == "is" || token.text == "if" || token.text == "else") {
        return Unexpected("a value");
      } else {
        literal->kind = Kind::kName;
        literal->name = token.text;
      }
      Take();
      return literal;
    case Token::Kind::kOperator:
      if (token.text == "(") return ParseParentheses();
      if (token.text == "{") return ParseDict();
      if (SkipOp("[")) {
        std::vector<ExprPtr> items;
        while (!IsOp("]")) {
          if (!items.empty()) PHX_RETURN_IF_ERROR(ExpectOp(","));
          if (IsOp("]")) break;
          PHX_ASSIGN_OR_RETURN(ExprPtr item, ParseExpr());
          items.push_back(std::move(item));
        }
        Take();
        return Node(Kind::kList, token.line, "", std::move(items));
      }
      return Unexpected("a value");
    default:
      return Unexpected("a value");
  }
}

absl::StatusOr<ExprPtr> ExprParser::ParseParentheses() {
  const int line = Take().line;
  std::vector<ExprPtr> items;
  bool tuple = true;
  while (!IsOp(")")) {
    if (!items.empty()) PHX_RETURN_IF_ERROR(ExpectOp(","));
    if (IsOp(")")) break;
    PHX_ASSIGN_OR_RETURN(ExprPtr item, ParseExpr());
    items.push_back(std::move(item));
    tuple = items.size() > 1 || IsOp(",");
  }
  Take();
  if (!tuple) return std::move(items[0]);
  return Node(Kind::kTuple, line, "", std::move(items));
}

absl::StatusOr<ExprPtr> ExprParser::ParseDict() {
  const int line = Take().line;
  std::vector<ExprPtr> items;
  while (!IsOp("}")) {
    if (!items.empty()) PHX_RETURN_IF_ERROR(ExpectOp(","));
    if (IsOp("}")) break;
    PHX_ASSIGN_OR_RETURN(ExprPtr key, ParseExpr());
    items.push_back(std::move(key));
    PHX_RETURN_IF_ERROR(ExpectOp(":"));
    PHX_ASSIGN_OR_RETURN(ExprPtr value, ParseExpr());
    items.push_back(std::move(value));
  }
  Take();
  return Node(Kind::kDict, line, "", std::move(items));
}

absl::StatusOr<ExprPtr> ExprParser::ParseTuple() {
  const int line = Now().line;
  PHX_ASSIGN_OR_RETURN(ExprPtr first, ParseExpr());
  if (!IsOp(",")) return first;
  std::vector<ExprPtr> items = MakeArgs(std::move(first));
  while (SkipOp(",")) {
    if (Now().kind == Token::Kind::kVariableEnd || Now().kind == Token::Kind::kBlockEnd) break;
    PHX_ASSIGN_OR_RETURN(ExprPtr item, ParseExpr());
    items.push_back(std::move(item));
  }
  return Node(Kind::kTuple, line, "", std::move(items));
}

absl::StatusOr<ExprPtr> ExprParser::ParseIterated() {
  const int line = Now().line;
  PHX_ASSIGN_OR_RETURN(ExprPtr first, Deeper(&ExprParser::ParseOr));
  if (!IsOp(",")) return first;
  std::vector<ExprPtr> items = MakeArgs(std::move(first));
  while (SkipOp(",")) {
    if (Now().kind == Token::Kind::kBlockEnd || IsName("if") || IsName("recursive")) break;
    PHX_ASSIGN_OR_RETURN(ExprPtr item, Deeper(&ExprParser::ParseOr));
    items.push_back(std::move(item));
  }
  return Node(Kind::kTuple, line, "", std::move(items));
}

absl::StatusOr<std::string> ExprParser::ParseVariable() {
  const int line = Now().line;
  PHX_ASSIGN_OR_RETURN(std::string name, ExpectName());
  for (const char* constant :
       {"true", "false", "none", "True", "False", "None", "not", "and", "or", "in", "is", "if", "else"}) {
    if (name == constant) {
      return ErrorAt(line, absl::StatusCode::kInvalidArgument,
                     absl::StrCat("'", name, "' cannot be a variable"));
    }
  }
  return name;
}

absl::StatusOr<Target> ExprParser::ParseTarget() {
  if (++nesting_ > kMaxNesting) return Unsupported(Now().line, "a tuple this deep");
  Target tuple;
  bool several = false;
  while (true) {
    Target part;
    if (SkipOp("(")) {
      PHX_ASSIGN_OR_RETURN(part, ParseTarget());
      PHX_RETURN_IF_ERROR(ExpectOp(")"));
    } else {
      PHX_ASSIGN_OR_RETURN(part.name, ParseVariable());
    }
    tuple.parts.push_back(std::move(part));
    if (!SkipOp(",")) break;
    several = true;
    if (IsName("in") || IsOp("=") || IsOp(")")) break;
  }
  --nesting_;
  if (several) return tuple;
  Target one = std::move(tuple.parts[0]);
  return one;
}

absl::StatusOr<ExprPtr> ExprParser::ParsePostfix(ExprPtr expr) {
  while (true) {
    const int line = Now().line;
    if (SkipOp(".")) {
      if (Now().kind == Token::Kind::kInteger) {
        PHX_ASSIGN_OR_RETURN(ExprPtr index, ParsePrimary());
        PHX_ASSIGN_OR_RETURN(expr, Node(Kind::kIndex, line, "", MakeArgs(std::move(expr), std::move(index))));
        continue;
      }
      PHX_ASSIGN_OR_RETURN(std::string name, ExpectName());
      PHX_ASSIGN_OR_RETURN(expr, Node(Kind::kAttribute, line, std::move(name), MakeArgs(std::move(expr))));
    } else if (IsOp("[")) {
      PHX_ASSIGN_OR_RETURN(expr, ParseSubscript(std::move(expr)));
    } else if (IsOp("(")) {
      PHX_ASSIGN_OR_RETURN(expr, ParseCall(std::move(expr)));
    } else {
      return expr;
    }
  }
}

absl::StatusOr<ExprPtr> ExprParser::ParseCall(ExprPtr callee) {
  const int line = Now().line;
  PHX_ASSIGN_OR_RETURN(ExprPtr call, Node(Kind::kCall, line, "", MakeArgs(std::move(callee))));
  PHX_RETURN_IF_ERROR(ParseArguments(call.get()));
  return call;
}

absl::StatusOr<ExprPtr> ExprParser::ParseSubscript(ExprPtr expr) {
  const int line = Take().line;
  std::vector<ExprPtr> args = MakeArgs(std::move(expr));
  bool slice = false;
  for (int part = 0; part < 3; ++part) {
    ExprPtr bound;
    if (!IsOp(":") && !IsOp("]")) {
      PHX_ASSIGN_OR_RETURN(bound, ParseExpr());
    }
    args.push_back(std::move(bound));
    if (!SkipOp(":")) break;
    slice = true;
  }
  if (IsOp(",")) return Unsupported(line, "a tuple as an index");
  PHX_RETURN_IF_ERROR(ExpectOp("]"));
  if (!slice) {
    if (args[1] == nullptr) return ErrorAt(line, absl::StatusCode::kInvalidArgument, "an index [] is empty");
    return Node(Kind::kIndex, line, "", std::move(args));
  }
  args.resize(4);
  return Node(Kind::kSlice, line, "", std::move(args));
}

absl::StatusOr<ExprPtr> ExprParser::ParseFilter(ExprPtr expr) {
  const int line = Now().line;
  PHX_ASSIGN_OR_RETURN(std::string name, ExpectName());
  const absl::Status known = CheckFilter(name);
  if (!known.ok() && !lenient_) return ErrorAt(line, known.code(), std::string(known.message()));
  PHX_ASSIGN_OR_RETURN(ExprPtr filter, Node(Kind::kFilter, line, std::move(name), MakeArgs(std::move(expr))));
  if (IsOp("(")) PHX_RETURN_IF_ERROR(ParseArguments(filter.get()));
  return filter;
}

absl::StatusOr<ExprPtr> ExprParser::ParseBlockFilter() {
  PHX_ASSIGN_OR_RETURN(ExprPtr filter, ParseFilter(nullptr));
  while (SkipOp("|")) {
    PHX_ASSIGN_OR_RETURN(filter, ParseFilter(std::move(filter)));
  }
  return filter;
}

absl::StatusOr<ExprPtr> ExprParser::ParseFilters(ExprPtr expr) {
  while (true) {
    if (SkipOp("|")) {
      PHX_ASSIGN_OR_RETURN(expr, ParseFilter(std::move(expr)));
    } else if (SkipName("is")) {
      PHX_ASSIGN_OR_RETURN(expr, ParseTest(std::move(expr)));
    } else if (IsOp("(")) {
      PHX_ASSIGN_OR_RETURN(expr, ParseCall(std::move(expr)));
    } else {
      return expr;
    }
  }
}

absl::StatusOr<ExprPtr> ExprParser::ParseTest(ExprPtr expr) {
  const int line = Now().line;
  const bool negated = SkipName("not");
  PHX_ASSIGN_OR_RETURN(std::string name, ExpectName());
  const absl::Status known = CheckTest(name);
  if (!known.ok() && !lenient_) return ErrorAt(line, known.code(), std::string(known.message()));
  PHX_ASSIGN_OR_RETURN(expr, Node(Kind::kTest, line, std::move(name), MakeArgs(std::move(expr))));
  const Token::Kind next = Now().kind;
  if (IsOp("(")) {
    PHX_RETURN_IF_ERROR(ParseArguments(expr.get()));
  } else if (next == Token::Kind::kString || next == Token::Kind::kInteger || next == Token::Kind::kFloat ||
             IsOp("[") || IsOp("{") ||
             (next == Token::Kind::kName && !IsName("else") && !IsName("or") && !IsName("and"))) {
    if (IsName("is")) return Unexpected("no second test");
    PHX_ASSIGN_OR_RETURN(ExprPtr argument, Deeper(&ExprParser::ParsePrimary));
    PHX_ASSIGN_OR_RETURN(argument, ParsePostfix(std::move(argument)));
    expr->args.push_back(std::move(argument));
    PHX_RETURN_IF_ERROR(Measure(expr.get()));
  }
  if (negated) {
    PHX_ASSIGN_OR_RETURN(expr, Node(Kind::kNot, line, "", MakeArgs(std::move(expr))));
  }
  return expr;
}

absl::Status ExprParser::ParseArguments(Expr* call) {
  PHX_RETURN_IF_ERROR(ExpectOp("("));
  bool first = true;
  while (!IsOp(")")) {
    if (!first) PHX_RETURN_IF_ERROR(ExpectOp(","));
    first = false;
    if (IsOp(")")) break;
    if (IsOp("*") || IsOp("**")) return Unsupported(Now().line, "unpacking of arguments");
    if (Now().kind == Token::Kind::kName && Ahead(1).kind == Token::Kind::kOperator && Ahead(1).text == "=") {
      std::string name = Take().text;
      for (const auto& keyword : call->keywords) {
        if (keyword.first == name) return Unexpected("each keyword once");
      }
      Take();
      PHX_ASSIGN_OR_RETURN(ExprPtr value, ParseExpr());
      call->keywords.emplace_back(std::move(name), std::move(value));
    } else {
      if (!call->keywords.empty()) return Unexpected("a keyword argument");
      PHX_ASSIGN_OR_RETURN(ExprPtr value, ParseExpr());
      call->args.push_back(std::move(value));
    }
  }
  Take();
  return Measure(call);
}

}  // namespace phalanx::jinja
