#include "coordinator/text/jinja_expr_parser.h"

#include "absl/strings/escaping.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "base/status_macros.h"
#include "base/strings.h"

namespace phalanx::jinja {
namespace {

using Kind = Expr::Kind;

constexpr std::string_view kLoopAttributes[] = {"first",     "last",   "index",    "index0",  "revindex",
                                                "revindex0", "length", "previtem", "nextitem"};

template <typename... Args>
std::vector<ExprPtr> MakeArgs(Args... args) {
  std::vector<ExprPtr> list;
  (list.push_back(std::move(args)), ...);
  return list;
}

}  // namespace

absl::Status ExprParser::CheckCalls() const {
  for (const UnknownCall& call : unknown_calls_) {
    if (guarded_.count(call.name) == 0) return call.error;
  }
  return absl::OkStatus();
}

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
  bool compared = false;
  while (true) {
    const int line = Now().line;
    const bool negated = IsName("not") && Ahead(1).kind == Token::Kind::kName && Ahead(1).text == "in";
    const bool symbol = IsOp("==") || IsOp("!=") || IsOp("<") || IsOp("<=") || IsOp(">") || IsOp(">=");
    if (!symbol && !negated && !IsName("in")) return left;
    if (compared) return Unsupported(line, "a chained comparison");
    compared = true;
    if (negated) Take();
    const std::string op = Take().text;
    PHX_ASSIGN_OR_RETURN(ExprPtr right, ParseSum());
    PHX_ASSIGN_OR_RETURN(left, Node(Kind::kBinary, line, op, MakeArgs(std::move(left), std::move(right))));
    if (negated) {
      PHX_ASSIGN_OR_RETURN(left, Node(Kind::kNot, line, "", MakeArgs(std::move(left))));
    }
  }
}

absl::StatusOr<ExprPtr> ExprParser::ParseSum() {
  return LeftAssociative({"+", "-"}, &ExprParser::ParseConcat);
}

absl::StatusOr<ExprPtr> ExprParser::ParseConcat() {
  return LeftAssociative({"~"}, &ExprParser::ParseProduct);
}

absl::StatusOr<ExprPtr> ExprParser::ParseProduct() {
  PHX_ASSIGN_OR_RETURN(ExprPtr product, LeftAssociative({"*", "//", "%"}, &ExprParser::ParseOperand));
  if (IsOp("/") || IsOp("**")) return Unsupported(Now().line, absl::StrCat("operator ", Now().text));
  return product;
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
      if (SkipOp("(")) {
        if (IsOp(")")) return Unsupported(token.line, "a tuple");
        PHX_ASSIGN_OR_RETURN(ExprPtr inner, ParseExpr());
        if (IsOp(",")) return Unsupported(token.line, "a tuple");
        PHX_RETURN_IF_ERROR(ExpectOp(")"));
        return inner;
      }
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
      if (IsOp("{")) return Unsupported(token.line, "a mapping literal {...}");
      return Unexpected("a value");
    default:
      return Unexpected("a value");
  }
}

absl::StatusOr<ExprPtr> ExprParser::ParsePostfix(ExprPtr expr) {
  while (true) {
    const int line = Now().line;
    if (SkipOp(".")) {
      PHX_ASSIGN_OR_RETURN(std::string name, ExpectName());
      if (expr->kind == Kind::kName && expr->name == "loop" &&
          std::find(std::begin(kLoopAttributes), std::end(kLoopAttributes), name) ==
              std::end(kLoopAttributes)) {
        return Unsupported(line, absl::StrCat("loop.", name));
      }
      const Kind kind = IsOp("(") ? Kind::kMethod : Kind::kAttribute;
      PHX_ASSIGN_OR_RETURN(expr, Node(kind, line, std::move(name), MakeArgs(std::move(expr))));
      if (kind == Kind::kMethod) {
        PHX_RETURN_IF_ERROR(ParseArguments(expr.get()));
        PHX_RETURN_IF_ERROR(Check(CallKind::kMethod, *expr, 1));
      }
    } else if (IsOp("[")) {
      PHX_ASSIGN_OR_RETURN(expr, ParseSubscript(std::move(expr)));
    } else if (IsOp("(")) {
      if (expr->kind != Kind::kName)
        return Unsupported(line, "a call of something other than a name or a method");
      expr->kind = Kind::kCall;
      PHX_RETURN_IF_ERROR(ParseArguments(expr.get()));
      // A function that is not there is no error where the template asks for it first.
      const absl::Status known = Check(CallKind::kFunction, *expr, 0);
      if (known.code() == absl::StatusCode::kUnimplemented) {
        unknown_calls_.push_back({expr->name, known});
      } else {
        PHX_RETURN_IF_ERROR(known);
      }
    } else {
      return expr;
    }
  }
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

absl::StatusOr<ExprPtr> ExprParser::ParseFilters(ExprPtr expr) {
  while (true) {
    const int line = Now().line;
    if (SkipOp("|")) {
      PHX_ASSIGN_OR_RETURN(std::string name, ExpectName());
      PHX_ASSIGN_OR_RETURN(expr, Node(Kind::kFilter, line, std::move(name), MakeArgs(std::move(expr))));
      if (IsOp("(")) PHX_RETURN_IF_ERROR(ParseArguments(expr.get()));
      PHX_RETURN_IF_ERROR(Check(CallKind::kFilter, *expr, 1));
    } else if (SkipName("is")) {
      PHX_ASSIGN_OR_RETURN(expr, ParseTest(std::move(expr)));
    } else if (IsOp("(")) {
      return Unsupported(line, "a call of something other than a name or a method");
    } else {
      return expr;
    }
  }
}

absl::StatusOr<ExprPtr> ExprParser::ParseTest(ExprPtr expr) {
  const int line = Now().line;
  const bool negated = SkipName("not");
  PHX_ASSIGN_OR_RETURN(std::string name, ExpectName());
  const Token::Kind next = Now().kind;
  if (next == Token::Kind::kString || next == Token::Kind::kInteger || IsOp("(") || IsOp("[") || IsOp("{") ||
      (next == Token::Kind::kName && !IsName("else") && !IsName("or") && !IsName("and"))) {
    return Unsupported(line, absl::StrCat("test '", name, "' with an argument"));
  }
  if (name == "defined" && expr->kind == Kind::kName) guarded_.insert(expr->name);
  PHX_ASSIGN_OR_RETURN(expr, Node(Kind::kTest, line, std::move(name), MakeArgs(std::move(expr))));
  PHX_RETURN_IF_ERROR(Check(CallKind::kTest, *expr, 1));
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

absl::Status ExprParser::Check(CallKind kind, const Expr& call, size_t inputs) const {
  std::vector<std::string> keywords;
  for (const auto& keyword : call.keywords) keywords.push_back(keyword.first);
  const absl::Status status = CheckCall(kind, call.name, call.args.size() - inputs, keywords);
  return status.ok() ? status : ErrorAt(call.line, status.code(), std::string(status.message()));
}

}  // namespace phalanx::jinja
