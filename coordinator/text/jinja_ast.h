// The tree a template is parsed to.
#pragma once

#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "absl/status/statusor.h"
#include "coordinator/text/jinja_value.h"

namespace phalanx::jinja {

struct Expr {
  enum class Kind {
    kLiteral,      // value
    kName,         // name
    kList,         // args: items
    kAttribute,    // args[0] . name
    kIndex,        // args[0] [ args[1] ]
    kSlice,        // args[0] [ args[1] : args[2] : args[3] ], the last three may be null
    kUnary,        // name: - +; args[0]
    kBinary,       // name: + - * // % ~ == != < <= > >= in; args[0], args[1]
    kNot,          // args[0]
    kAnd,          // args[0], args[1]
    kOr,           // args[0], args[1]
    kConditional,  // args[0] if args[1] else args[2], which may be null
    kFilter,       // args[0] | name(args[1...], keywords)
    kTest,         // args[0] is name
    kMethod,       // args[0] . name(args[1...])
    kCall,         // name(args..., keywords)
  };
  Kind kind;
  int line = 0;
  int depth = 1;  // of the tree below, itself included
  std::string name = {};
  Value value = {};
  std::vector<std::unique_ptr<Expr>> args = {};
  std::vector<std::pair<std::string, std::unique_ptr<Expr>>> keywords = {};
};
using ExprPtr = std::unique_ptr<Expr>;

struct Stmt;
using Block = std::vector<Stmt>;

struct Stmt {
  enum class Kind {
    kText,    // text
    kOutput,  // expr
    kIf,      // branches, otherwise
    kFor,     // for name in expr if filter: branches[0].body; otherwise where there is no item
    kSet,     // name = expr, or name.attribute = expr
  };
  struct Branch {
    ExprPtr condition;  // null in a for
    Block body;
  };
  Kind kind;
  int line = 0;
  std::string text = {};
  std::string name = {};
  std::string attribute = {};
  ExprPtr expr = {};
  ExprPtr filter = {};
  std::vector<Branch> branches = {};
  Block otherwise = {};
};

struct Program {
  Block body;
};

// Errors as ChatTemplate::Parse. `source` must be valid UTF-8.
absl::StatusOr<Program> ParseProgram(std::string_view source);

}  // namespace phalanx::jinja
