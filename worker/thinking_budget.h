// The thinking budget: after N tokens of reasoning the end of the reasoning is forced. Pure.
//
// The rule. The decision about generated token p reads the tokens 0..p-2 alone, so that it is the same
// whether or not p is planned while p-1 is still to be sampled, and whatever runs beside it. With S the state
// of a ReasoningSplitter after 0..p-2 and, while S thinks, T = S.reasoning_tokens() + (p > 0 ? 1 : 0) (token
// p-1 is taken to be of the reasoning):
//
//   S answers             nothing is decided any more.
//   S is undecided        nothing is forced: the model has not opened its reasoning. With N <= 1 p may not
//                         hold a closing mark: it would not be seen when the end is forced.
//   S thinks, T < N       p is free; but where T + 1 = N it may not hold the closing mark, likewise.
//   S thinks, T >= N      the tokens of the family's closing mark are forced at p, p+1, ..., and nothing is
//                         decided after them. Unless the last bytes may be the beginning of a closing mark:
//                         then the force is put off, so that a mark that the model is writing itself is not
//                         said twice, and p may not hold a whole one; kMaxPutOff times in a row at most, the
//                         last time without a token that may complete one.
//
// So the reasoning has N tokens where N >= 1; fewer where the model ends it itself or begins by repeating the
// opening mark that its prompt has; up to kMaxPutOff more where it is cut while it writes what may be the
// mark. With N = 0 it has none where the prompt opened it, else one. A family without ids in `close` is not
// limited.
//
// A forced token is otherwise like a sampled one: a stop id ends the sequence, max_tokens counts it.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "base/reasoning.h"
#include "base/token_bytes.h"

namespace phalanx {

inline constexpr int kMaxPutOff = 8;

struct MarkIds {
  std::string family;
  std::vector<int32_t> ids;
};

struct ThinkingBudget {
  int32_t max_tokens = 0;  // N
  std::string opened;      // the family whose reasoning the prompt left open; "": none
  std::vector<MarkIds> close;
};

// What a vocabulary's tokens may do to a reasoning; made once in a group's life. Immutable.
class ThinkingTokens {
 public:
  using Ids = std::shared_ptr<const std::vector<int32_t>>;  // null: no token

  // `bytes` is not null.
  explicit ThinkingTokens(std::shared_ptr<const TokenBytes> bytes);

  const TokenBytes& bytes() const { return *bytes_; }
  // Tokens that hold the whole closing mark of the family, or of any.
  Ids closing(const ReasoningFamily& family) const { return by_family_.at(&family).closing; }
  Ids any_closing() const { return any_closing_; }
  // Tokens that hold it or begin with an end of it.
  Ids completing(const ReasoningFamily& family) const { return by_family_.at(&family).completing; }

 private:
  struct OfFamily {
    Ids closing, completing;
  };
  std::shared_ptr<const TokenBytes> bytes_;
  std::map<const ReasoningFamily*, OfFamily> by_family_;
  Ids any_closing_;
};

// InvalidArgument naming the field, its value and what would be right; FailedPrecondition where the group has
// no bytes of tokens (null).
absl::Status CheckThinkingBudget(const ThinkingBudget& budget, const TokenBytes* bytes, int64_t vocab_size);

// The budget of one sequence.
class ThinkingTracker {
 public:
  struct Decision {
    int32_t forced = -1;         // the token; -1: sampled
    ThinkingTokens::Ids banned;  // may be null
  };

  // `budget` is as CheckThinkingBudget wants it; `tokens` outlives the tracker.
  ThinkingTracker(const ThinkingBudget& budget, const ThinkingTokens* tokens);
  ThinkingTracker(const ThinkingTracker&) = delete;

  // About generated token `index`. `generated` is the log and holds at least the first index - 1. What was
  // decided about earlier tokens is found out from the log: `index` only has to rise from call to call.
  Decision Decide(int64_t index, const std::vector<int32_t>& generated);

 private:
  Decision DecideNext(const std::vector<int32_t>& generated);

  const int64_t limit_;
  const ThinkingTokens* const tokens_;
  std::map<const ReasoningFamily*, std::vector<int32_t>> close_;
  ReasoningSplitter splitter_;
  int64_t next_ = 0;                               // the index of the next decision
  int64_t fed_ = 0;                                // tokens that the splitter has
  int put_off_ = 0;                                // times in a row
  const std::vector<int32_t>* forcing_ = nullptr;  // in close_
  size_t num_forced_ = 0;
  bool done_ = false;
  std::string text_;  // scratch
};

}  // namespace phalanx
