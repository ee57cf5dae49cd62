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
    kTuple,        // args: items
    kDict,         // args: key, value, key, value...
    kAttribute,    // args[0] . name
    kIndex,        // args[0] [ args[1] ]
    kSlice,        // args[0] [ args[1] : args[2] : args[3] ], the last three may be null
    kUnary,        // name: - +; args[0]
    kBinary,       // name: + - * / // % **; args[0], args[1]
    kConcat,       // args[0] ~ args[1] ...
    kCompare,      // args[0] operators[0] args[1] operators[1] ...: == != < <= > >= in, not in
    kNot,          // args[0]
    kAnd,          // args[0], args[1]
    kOr,           // args[0], args[1]
    kConditional,  // args[0] if args[1] else args[2], which may be null
    kFilter,       // args[0] | name(args[1...], keywords); args[0] is null in a block's filter
    kTest,         // args[0] is name(args[1...], keywords)
    kCall,         // args[0](args[1...], keywords)
  };
  Kind kind;
  int line = 0;
  int depth = 1;  // of the tree below, itself included
  std::string name = {};
  Value value = {};
  std::vector<std::unique_ptr<Expr>> args = {};
  std::vector<std::pair<std::string, std::unique_ptr<Expr>>> keywords = {};
  std::vector<std::string> operators = {};
};
using ExprPtr = std::unique_ptr<Expr>;

// What is assigned to: a name, or several in a tuple.
struct Target {
  std::string name;
  std::vector<Target> parts = {};  // of a tuple, then name is empty
};

struct Stmt;
using Block = std::vector<Stmt>;

struct Stmt {
  enum class Kind {
    kText,      // text
    kOutput,    // expr
    kIf,        // branches, otherwise
    kFor,       // for target in expr if filter: branches[0].body; otherwise where there is no item
    kSet,       // target = expr, or target.attribute = expr
    kSetBlock,  // target = branches[0].body through the filter, which may be null
    kFilter,    // branches[0].body through the filter
    kMacro,     // name(parameters): branches[0].body
    kWith,      // parameters: branches[0].body, in a scope of its own
    kBreak,
    kContinue,
  };
  struct Branch {
    ExprPtr condition;  // only in an if
    Block body;
  };
  Kind kind;
  int line = 0;
  std::string text = {};
  std::string name = {};
  Target target = {};
  std::string attribute = {};
  ExprPtr expr = {};
  ExprPtr filter = {};
  std::vector<std::pair<Target, ExprPtr>> parameters = {};  // of a macro: null without a default
  std::vector<Branch> branches = {};
  Block otherwise = {};
};

struct Program {
  Block body;
};

// Errors as ChatTemplate::Parse. `source` must be valid UTF-8.
absl::StatusOr<Program> ParseProgram(std::string_view source);

}  // namespace phalanx::jinja
