// Parses the expressions of a template; the statements are in jinja_parser.cc.
#pragma once

#include <algorithm>
#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "coordinator/text/jinja_ast.h"
#include "coordinator/text/jinja_lexer.h"

namespace phalanx::jinja {

// Bounds the recursion of the parser, whose stack frames are large; trees may be deeper (long chains).
inline constexpr int kMaxNesting = 64;
inline constexpr int kMaxExprDepth = 400;

class ExprParser {
 public:
  // The last token is kEnd.
  explicit ExprParser(std::vector<Token> tokens) : tokens_(std::move(tokens)) {}

  // Any expression.
  absl::StatusOr<ExprPtr> ParseExpr() { return Deeper(&ExprParser::ParseConditional); }
  // One without `if` at its top, or several as a tuple: what a for runs over.
  absl::StatusOr<ExprPtr> ParseIterated();
  // One, or several with commas between as a tuple.
  absl::StatusOr<ExprPtr> ParseTuple();
  // `filter(...) | filter(...)` of a block: the first has no value that it is applied to.
  absl::StatusOr<ExprPtr> ParseBlockFilter();
  absl::StatusOr<Target> ParseTarget();
  // InvalidArgument for a name that cannot be assigned to.
  absl::StatusOr<std::string> ParseVariable();

  // Tokens.
  const Token& Now() const { return tokens_[at_]; }
  const Token& Ahead(size_t n) const { return tokens_[std::min(at_ + n, tokens_.size() - 1)]; }
  Token Take() {
    Token token = tokens_[at_];
    if (at_ + 1 < tokens_.size()) ++at_;
    return token;
  }
  bool IsOp(std::string_view op) const { return Now().kind == Token::Kind::kOperator && Now().text == op; }
  bool IsName(std::string_view name) const { return Now().kind == Token::Kind::kName && Now().text == name; }
  bool SkipOp(std::string_view op) { return IsOp(op) && (Take(), true); }
  bool SkipName(std::string_view name) { return IsName(name) && (Take(), true); }
  absl::Status Unexpected(const std::string& wanted) const;
  static absl::Status Unsupported(int line, const std::string& what);
  absl::Status ExpectOp(std::string_view op);
  absl::StatusOr<std::string> ExpectName();
  absl::Status ExpectEnd(Token::Kind kind);

  // Names of filters and tests that are not known are errors when they are run only. As in Jinja, so in an
  // if: it may ask first.
  bool lenient_ = false;

 private:
  // Loosest first.
  absl::StatusOr<ExprPtr> ParseConditional();
  absl::StatusOr<ExprPtr> ParseOr();
  absl::StatusOr<ExprPtr> ParseAnd();
  absl::StatusOr<ExprPtr> ParseNot();
  absl::StatusOr<ExprPtr> ParseCompare();
  absl::StatusOr<ExprPtr> ParseSum();
  absl::StatusOr<ExprPtr> ParseConcat();
  absl::StatusOr<ExprPtr> ParseProduct();
  absl::StatusOr<ExprPtr> ParsePower();
  absl::StatusOr<ExprPtr> ParseOperand();
  absl::StatusOr<ExprPtr> ParseUnary(bool with_filter);
  absl::StatusOr<ExprPtr> ParsePrimary();
  absl::StatusOr<ExprPtr> ParsePostfix(ExprPtr expr);
  absl::StatusOr<ExprPtr> ParseParentheses();
  absl::StatusOr<ExprPtr> ParseDict();
  absl::StatusOr<ExprPtr> ParseSubscript(ExprPtr expr);
  absl::StatusOr<ExprPtr> ParseCall(ExprPtr callee);
  absl::StatusOr<ExprPtr> ParseFilter(ExprPtr expr);
  absl::StatusOr<ExprPtr> ParseFilters(ExprPtr expr);
  absl::StatusOr<ExprPtr> ParseTest(ExprPtr expr);
  absl::Status ParseArguments(Expr* call);

  // Runs `parse` one level down; bounds the recursion of the parser itself.
  template <typename Parse>
  absl::StatusOr<ExprPtr> Deeper(Parse parse) {
    if (++nesting_ > kMaxNesting) return Unsupported(Now().line, "an expression this deep");
    absl::StatusOr<ExprPtr> expr = (this->*parse)();
    --nesting_;
    return expr;
  }
  // Makes a node, and bounds the depth of the tree (chains like a + b + ... are deep without recursion here).
  static absl::StatusOr<ExprPtr> Node(Expr::Kind kind, int line, std::string name, std::vector<ExprPtr> args);
  static absl::Status Measure(Expr* expr);
  // A left-associative level of binary operators: `next (op next)*`.
  absl::StatusOr<ExprPtr> LeftAssociative(const std::vector<std::string_view>& ops,
                                          absl::StatusOr<ExprPtr> (ExprParser::*next)());

  std::vector<Token> tokens_;
  size_t at_ = 0;
  int nesting_ = 0;
};

}  // namespace phalanx::jinja
