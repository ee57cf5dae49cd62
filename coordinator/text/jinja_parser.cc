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
    return program;
  }

 private:
  // Up to, and not including, a statement of one of the names in `ends`; the last of them closes the block,
  // which began at `line`.
  absl::StatusOr<Block> ParseBlock(const std::vector<std::string_view>& ends, int line);
  absl::StatusOr<Stmt> ParseIf();
  absl::StatusOr<Stmt> ParseFor();
  absl::StatusOr<Stmt> ParseSet();
  absl::StatusOr<Stmt> ParseMacro();
  absl::StatusOr<Stmt> ParseWith();
  absl::StatusOr<Stmt> ParseFilterBlock();
  absl::StatusOr<Stmt> ParseOutput();
  // The rest of the statement's tag, and its body up to and including {% end %}.
  absl::Status ParseBody(std::string_view end, Stmt* stmt);

  int blocks_ = 0;  // open ones
  int loops_ = 0;   // open ones that a break here would leave
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
      PHX_ASSIGN_OR_RETURN(Stmt stmt, ParseOutput());
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
    } else if (name.text == "macro") {
      stmt = ParseMacro();
    } else if (name.text == "with") {
      stmt = ParseWith();
    } else if (name.text == "filter") {
      stmt = ParseFilterBlock();
    } else if (name.text == "generation") {
      // Marks what the assistant says, for training; renders its body.
      stmt = Stmt{Stmt::Kind::kWith, Take().line};
      PHX_RETURN_IF_ERROR(ParseBody("endgeneration", &*stmt));
    } else if (name.text == "break" || name.text == "continue") {
      stmt = Stmt{name.text == "break" ? Stmt::Kind::kBreak : Stmt::Kind::kContinue, Take().line};
      if (loops_ == 0) {
        return ErrorAt(name.line, absl::StatusCode::kInvalidArgument,
                       absl::StrCat("{% ", name.text, " %} outside of a for"));
      }
      PHX_RETURN_IF_ERROR(ExpectEnd(Token::Kind::kBlockEnd));
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
  const bool before = std::exchange(lenient_, true);
  Stmt stmt{Stmt::Kind::kIf, Now().line};
  while (true) {
    Take();  // if, elif
    Stmt::Branch branch;
    PHX_ASSIGN_OR_RETURN(branch.condition, ParseIterated());
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
  lenient_ = before;
  return stmt;
}

absl::StatusOr<Stmt> Parser::ParseOutput() {
  Stmt stmt{Stmt::Kind::kOutput, Take().line};
  PHX_ASSIGN_OR_RETURN(stmt.expr, ParseTuple());
  PHX_RETURN_IF_ERROR(ExpectEnd(Token::Kind::kVariableEnd));
  return stmt;
}

absl::Status Parser::ParseBody(std::string_view end, Stmt* stmt) {
  PHX_RETURN_IF_ERROR(ExpectEnd(Token::Kind::kBlockEnd));
  Stmt::Branch branch;
  const int loops = std::exchange(loops_, 0);
  PHX_ASSIGN_OR_RETURN(branch.body, ParseBlock({end}, stmt->line));
  loops_ = loops;
  stmt->branches.push_back(std::move(branch));
  Take();  // {%
  Take();  // end
  if (end == "endmacro" && Now().kind == Token::Kind::kName) Take();
  return ExpectEnd(Token::Kind::kBlockEnd);
}

absl::StatusOr<Stmt> Parser::ParseFor() {
  Stmt stmt{Stmt::Kind::kFor, Take().line};
  PHX_ASSIGN_OR_RETURN(stmt.target, ParseTarget());
  if (!SkipName("in")) return Unexpected("'in'");
  PHX_ASSIGN_OR_RETURN(stmt.expr, ParseIterated());
  if (SkipName("if")) {
    PHX_ASSIGN_OR_RETURN(stmt.filter, ParseExpr());
  }
  if (IsName("recursive")) return Unsupported(stmt.line, "a recursive for");
  PHX_RETURN_IF_ERROR(ExpectEnd(Token::Kind::kBlockEnd));
  Stmt::Branch branch;
  ++loops_;
  PHX_ASSIGN_OR_RETURN(branch.body, ParseBlock({"else", "endfor"}, stmt.line));
  --loops_;
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
  if (Ahead(1).kind == Token::Kind::kOperator && Ahead(1).text == ".") {
    PHX_ASSIGN_OR_RETURN(stmt.target.name, ExpectName());
    Take();
    PHX_ASSIGN_OR_RETURN(stmt.attribute, ExpectName());
  } else {
    PHX_ASSIGN_OR_RETURN(stmt.target, ParseTarget());
  }
  if (SkipOp("=")) {
    PHX_ASSIGN_OR_RETURN(stmt.expr, ParseTuple());
    PHX_RETURN_IF_ERROR(ExpectEnd(Token::Kind::kBlockEnd));
    return stmt;
  }
  if (Now().kind != Token::Kind::kBlockEnd && !IsOp("|")) return Unexpected("=");
  if (SkipOp("|")) {
    PHX_ASSIGN_OR_RETURN(stmt.filter, ParseBlockFilter());
  }
  stmt.kind = Stmt::Kind::kSetBlock;
  PHX_RETURN_IF_ERROR(ParseBody("endset", &stmt));
  return stmt;
}

absl::StatusOr<Stmt> Parser::ParseMacro() {
  Stmt stmt{Stmt::Kind::kMacro, Take().line};
  PHX_ASSIGN_OR_RETURN(stmt.name, ParseVariable());
  PHX_RETURN_IF_ERROR(ExpectOp("("));
  while (!IsOp(")")) {
    if (!stmt.parameters.empty()) PHX_RETURN_IF_ERROR(ExpectOp(","));
    if (IsOp(")")) break;
    Target parameter;
    PHX_ASSIGN_OR_RETURN(parameter.name, ParseVariable());
    ExprPtr value;
    if (SkipOp("=")) {
      PHX_ASSIGN_OR_RETURN(value, ParseExpr());
    } else if (!stmt.parameters.empty() && stmt.parameters.back().second != nullptr) {
      return Unexpected("a default, as the parameter before has one");
    }
    stmt.parameters.emplace_back(std::move(parameter), std::move(value));
  }
  Take();
  PHX_RETURN_IF_ERROR(ParseBody("endmacro", &stmt));
  return stmt;
}

absl::StatusOr<Stmt> Parser::ParseWith() {
  Stmt stmt{Stmt::Kind::kWith, Take().line};
  while (Now().kind != Token::Kind::kBlockEnd) {
    if (!stmt.parameters.empty()) PHX_RETURN_IF_ERROR(ExpectOp(","));
    Target target;
    PHX_ASSIGN_OR_RETURN(target.name, ParseVariable());
    PHX_RETURN_IF_ERROR(ExpectOp("="));
    PHX_ASSIGN_OR_RETURN(ExprPtr value, ParseExpr());
    stmt.parameters.emplace_back(std::move(target), std::move(value));
  }
  PHX_RETURN_IF_ERROR(ParseBody("endwith", &stmt));
  return stmt;
}

absl::StatusOr<Stmt> Parser::ParseFilterBlock() {
  Stmt stmt{Stmt::Kind::kFilter, Take().line};
  PHX_ASSIGN_OR_RETURN(stmt.filter, ParseBlockFilter());
  PHX_RETURN_IF_ERROR(ParseBody("endfilter", &stmt));
  return stmt;
}

}  // namespace

absl::StatusOr<Program> ParseProgram(std::string_view source) {
  PHX_ASSIGN_OR_RETURN(std::vector<Token> tokens, Lex(source));
  return Parser(std::move(tokens)).Run();
}

}  // namespace phalanx::jinja
