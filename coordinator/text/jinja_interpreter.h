// Runs a parsed template.
#pragma once

#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "absl/status/statusor.h"
#include "coordinator/text/jinja_ast.h"
#include "coordinator/text/jinja_functions.h"

namespace phalanx::jinja {

// The variables of a block, and what is around it.
struct Scope {
  std::vector<std::pair<std::string, Value>> variables;
  std::shared_ptr<Scope> outer;

  const Value* Find(std::string_view name) const;
  void Set(const std::string& name, Value value);
};

// `scope`: the template's globals. Errors as ChatTemplate::Render. `work`: see Budget.
absl::StatusOr<TextBuilder> Run(const Program& program, std::shared_ptr<Scope> scope,
                                std::optional<Date> today, int64_t work);

// One run. Statements are in jinja_interpreter.cc, expressions in jinja_eval.cc.
class Interpreter {
 public:
  Interpreter(std::shared_ptr<Scope> scope, Context context)
      : scope_(std::move(scope)), context_(std::move(context)) {}

  absl::Status Execute(const Block& block);
  TextBuilder TakeOutput() { return std::move(output_); }

 private:
  enum class Leave { kNo, kBreak, kContinue };
  // Replaces the scope by a new one inside of `outer` while it lives.
  class Enter {
   public:
    Enter(Interpreter* in, std::shared_ptr<Scope> outer) : in_(in), before_(in->scope_) {
      auto scope = std::make_shared<Scope>();
      scope->outer = std::move(outer);
      in->scope_ = std::move(scope);
    }
    ~Enter() { in_->scope_ = std::move(before_); }
    Enter(const Enter&) = delete;
    Enter& operator=(const Enter&) = delete;

   private:
    Interpreter* in_;
    std::shared_ptr<Scope> before_;
  };

  absl::Status ExecuteOne(const Stmt& stmt);
  absl::Status ExecuteOutput(const Stmt& stmt);
  absl::Status ExecuteIf(const Stmt& stmt);
  absl::Status ExecuteFor(const Stmt& stmt);
  absl::Status ExecuteSet(const Stmt& stmt);
  absl::Status ExecuteWith(const Stmt& stmt);
  absl::Status Assign(const Target& target, const Value& value, int line);
  absl::Status AssignAttribute(const Stmt& stmt, Value value);
  // What the body renders, through the filter if there is one.
  absl::StatusOr<Value> Capture(const Block& body, const Expr* filter);
  absl::Status Account(size_t bytes, int line);
  absl::Status Output(const Text& text, int line);

  absl::StatusOr<Value> Eval(const Expr& expr);
  absl::StatusOr<Value> EvalNow(const Expr& expr);
  absl::StatusOr<Value> EvalName(const Expr& expr);
  absl::StatusOr<Value> EvalItems(const Expr& expr);
  absl::StatusOr<Value> EvalDict(const Expr& expr);
  absl::StatusOr<Value> EvalSlice(const Expr& expr);
  absl::StatusOr<Value> EvalBinary(const Expr& expr);
  absl::StatusOr<Value> EvalConcat(const Expr& expr);
  absl::StatusOr<Value> EvalCompare(const Expr& expr);
  absl::StatusOr<Value> EvalConditional(const Expr& expr);
  absl::StatusOr<Value> EvalTest(const Expr& expr);
  absl::StatusOr<Value> EvalCall(const Expr& expr);
  absl::StatusOr<Value> ApplyFilter(const Expr& expr, const Value& input);
  absl::StatusOr<Arguments> EvalArguments(const Expr& expr);
  absl::StatusOr<Value> CallMacro(const Macro& macro, const Arguments& arguments, int line);

  absl::Status Charge(int64_t work, int line) { return AtLine(context_.budget.Charge(work), line); }
  static absl::Status AtLine(const absl::Status& status, int line);
  template <typename T>
  static absl::StatusOr<T> AtLine(absl::StatusOr<T> result, int line) {
    if (result.ok()) return result;
    return AtLine(result.status(), line);
  }
  // Bounds the recursion of the interpreter.
  absl::Status Deeper(int line);

  std::shared_ptr<Scope> scope_;
  Context context_;
  TextBuilder output_;
  Leave leave_ = Leave::kNo;
  int64_t loops_ = 0;  // open ones
  int depth_ = 0;
};

}  // namespace phalanx::jinja
