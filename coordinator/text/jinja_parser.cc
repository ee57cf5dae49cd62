#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "base/status_macros.h"
#include "base/strings.h"
#include "coordinator/text/jinja_ast.h"
#include "coordinator/text/jinja_expr_parser.h"
#include "coordinator/text/jinja_lexer.h"

namespace phalanx::jinja {
namespace {

constexpr int kMaxBlockDepth = 100;

class Parser : private ExprParser {
 public:
  using ExprParser::ExprParser;

  absl::StatusOr<Program> Run() {
    Program program;
    PHX_ASSIGN_OR_RETURN(program.body, ParseBlock({}, 1));
    PHX_RETURN_IF_ERROR(CheckCalls());
    return program;
  }

 private:
  // Up to, and not including, a statement of one of the names in `ends`; the last of them closes the block,
  // which began at `line`.
  absl::StatusOr<Block> ParseBlock(const std::vector<std::string_view>& ends, int line);
  absl::StatusOr<Stmt> ParseIf();
  absl::StatusOr<Stmt> ParseFor();
  absl::StatusOr<Stmt> ParseSet();
  absl::Status CheckTarget(const std::string& name, int line) const;

  int blocks_ = 0;  // open ones
};

absl::StatusOr<Block> Parser::ParseBlock(const std::vector<std::string_view>& ends, int line) {
  if (++blocks_ > kMaxBlockDepth) return Unsupported(Now().line, "nesting of blocks this deep");
  Block block;
  while (true) {
    if (Now().kind == Token::Kind::kEnd) {
      if (ends.empty()) break;
      return ErrorAt(line, absl::StatusCode::kInvalidArgument,
                     absl::StrCat("the block that begins here has no {% ", ToAbsl(ends.back()), " %}"));
    }
    if (Now().kind == Token::Kind::kText) {
      Stmt stmt{Stmt::Kind::kText, Now().line};
      stmt.text = Take().text;
      block.push_back(std::move(stmt));
      continue;
    }
    if (Now().kind == Token::Kind::kVariableBegin) {
      Stmt stmt{Stmt::Kind::kOutput, Take().line};
      PHX_ASSIGN_OR_RETURN(stmt.expr, ParseExpr());
      PHX_RETURN_IF_ERROR(ExpectEnd(Token::Kind::kVariableEnd));
      block.push_back(std::move(stmt));
      continue;
    }
    const Token name = Ahead(1);  // behind {%
    if (name.kind == Token::Kind::kName && std::find(ends.begin(), ends.end(), name.text) != ends.end())
      break;
    Take();
    if (name.kind != Token::Kind::kName) return Unexpected("the name of a statement");
    absl::StatusOr<Stmt> stmt = Stmt{Stmt::Kind::kText};
    if (name.text == "if") {
      stmt = ParseIf();
    } else if (name.text == "for") {
      stmt = ParseFor();
    } else if (name.text == "set") {
      stmt = ParseSet();
    } else if (name.text == "else" || name.text == "elif" || name.text.rfind("end", 0) == 0) {
      return Unexpected(ends.empty() ? "a statement outside of any block"
                                     : absl::StrCat("{% ", ToAbsl(ends.back()), " %}"));
    } else {
      return Unsupported(name.line, absl::StrCat("statement {% ", name.text, " %}"));
    }
    PHX_RETURN_IF_ERROR(stmt.status());
    block.push_back(*std::move(stmt));
  }
  --blocks_;
  return block;
}

absl::StatusOr<Stmt> Parser::ParseIf() {
  Stmt stmt{Stmt::Kind::kIf, Now().line};
  while (true) {
    Take();  // if, elif
    Stmt::Branch branch;
    PHX_ASSIGN_OR_RETURN(branch.condition, ParseExpr());
    PHX_RETURN_IF_ERROR(ExpectEnd(Token::Kind::kBlockEnd));
    PHX_ASSIGN_OR_RETURN(branch.body, ParseBlock({"elif", "else", "endif"}, stmt.line));
    stmt.branches.push_back(std::move(branch));
    Take();  // {%
    if (!IsName("elif")) break;
  }
  if (SkipName("else")) {
    PHX_RETURN_IF_ERROR(ExpectEnd(Token::Kind::kBlockEnd));
    PHX_ASSIGN_OR_RETURN(stmt.otherwise, ParseBlock({"endif"}, stmt.line));
    Take();  // {%
  }
  Take();  // endif
  PHX_RETURN_IF_ERROR(ExpectEnd(Token::Kind::kBlockEnd));
  return stmt;
}

absl::StatusOr<Stmt> Parser::ParseFor() {
  Stmt stmt{Stmt::Kind::kFor, Take().line};
  PHX_ASSIGN_OR_RETURN(stmt.name, ExpectName());
  PHX_RETURN_IF_ERROR(CheckTarget(stmt.name, stmt.line));
  if (IsOp(",")) return Unsupported(stmt.line, "a for over several variables");
  if (!SkipName("in")) return Unexpected("'in'");
  PHX_ASSIGN_OR_RETURN(stmt.expr, ParseIterated());
  if (SkipName("if")) {
    PHX_ASSIGN_OR_RETURN(stmt.filter, ParseExpr());
  }
  if (IsName("recursive")) return Unsupported(stmt.line, "a recursive for");
  PHX_RETURN_IF_ERROR(ExpectEnd(Token::Kind::kBlockEnd));
  Stmt::Branch branch;
  PHX_ASSIGN_OR_RETURN(branch.body, ParseBlock({"else", "endfor"}, stmt.line));
  stmt.branches.push_back(std::move(branch));
  Take();  // {%
  if (SkipName("else")) {
    PHX_RETURN_IF_ERROR(ExpectEnd(Token::Kind::kBlockEnd));
    PHX_ASSIGN_OR_RETURN(stmt.otherwise, ParseBlock({"endfor"}, stmt.line));
    Take();  // {%
  }
  Take();  // endfor
  PHX_RETURN_IF_ERROR(ExpectEnd(Token::Kind::kBlockEnd));
  return stmt;
}

absl::StatusOr<Stmt> Parser::ParseSet() {
  Stmt stmt{Stmt::Kind::kSet, Take().line};
  PHX_ASSIGN_OR_RETURN(stmt.name, ExpectName());
  if (SkipOp(".")) {
    PHX_ASSIGN_OR_RETURN(stmt.attribute, ExpectName());
  } else {
    PHX_RETURN_IF_ERROR(CheckTarget(stmt.name, stmt.line));
  }
  if (IsOp(",")) return Unsupported(stmt.line, "a set of several variables");
  if (Now().kind == Token::Kind::kBlockEnd || IsOp("|")) return Unsupported(stmt.line, "a set block");
  PHX_RETURN_IF_ERROR(ExpectOp("="));
  PHX_ASSIGN_OR_RETURN(stmt.expr, ParseExpr());
  if (IsOp(",")) return Unsupported(stmt.line, "a tuple");
  PHX_RETURN_IF_ERROR(ExpectEnd(Token::Kind::kBlockEnd));
  return stmt;
}

absl::Status Parser::CheckTarget(const std::string& name, int line) const {
  for (const char* constant : {"true", "false", "none", "True", "False", "None", "not", "and", "or", "in",
                               "is", "if", "else", "namespace", "raise_exception", "range"}) {
    if (name == constant) {
      return ErrorAt(line, absl::StatusCode::kInvalidArgument,
                     absl::StrCat("'", name, "' cannot be a variable"));
    }
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<Program> ParseProgram(std::string_view source) {
  PHX_ASSIGN_OR_RETURN(std::vector<Token> tokens, Lex(source));
  return Parser(std::move(tokens)).Run();
}

}  // namespace phalanx::jinja
