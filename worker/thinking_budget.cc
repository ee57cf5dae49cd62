#include "worker/thinking_budget.h"

#include <string_view>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "base/check.h"
#include "base/strings.h"

namespace phalanx {
namespace {

ThinkingTokens::Ids Share(std::vector<int32_t> ids) {
  return ids.empty() ? nullptr : std::make_shared<const std::vector<int32_t>>(std::move(ids));
}

// A control token is no text but where it is a mark as a whole.
bool Holds(const TokenBytes& tokens, size_t id, std::string_view mark) {
  return tokens.is_control[id] ? tokens.bytes[id] == mark : tokens.bytes[id].find(mark) != std::string::npos;
}

bool BeginsWithAnEndOf(std::string_view mark, std::string_view text) {
  for (size_t from = 1; from < mark.size(); ++from) {
    if (text.substr(0, mark.size() - from) == mark.substr(from)) return true;
  }
  return false;
}

void Feed(ReasoningSplitter* splitter, const TokenBytes& tokens, int32_t id, std::string* scratch) {
  scratch->clear();
  if (static_cast<size_t>(id) >= tokens.bytes.size()) {  // an id without a token says nothing
    splitter->Push("", /*is_control=*/true, scratch, scratch);
  } else {
    splitter->Push(tokens.bytes[id], tokens.is_control[id], scratch, scratch);
  }
}

std::string FamilyNames() {
  return absl::StrJoin(ReasoningFamilies(), ", ", [](std::string* out, const ReasoningFamily& family) {
    absl::StrAppend(out, "'", ToAbsl(family.name), "'");
  });
}

}  // namespace

ThinkingTokens::ThinkingTokens(std::shared_ptr<const TokenBytes> bytes) : bytes_(std::move(bytes)) {
  PHX_CHECK(bytes_ != nullptr, "the bytes of tokens are needed");
  std::vector<int32_t> any;
  for (const ReasoningFamily& family : ReasoningFamilies()) {
    std::vector<int32_t> closing, completing;
    for (size_t id = 0; id < bytes_->bytes.size(); ++id) {
      const bool holds = Holds(*bytes_, id, family.close);
      const bool completes = !bytes_->is_control[id] && BeginsWithAnEndOf(family.close, bytes_->bytes[id]);
      if (holds) closing.push_back(static_cast<int32_t>(id));
      if (holds || completes) completing.push_back(static_cast<int32_t>(id));
    }
    any.insert(any.end(), closing.begin(), closing.end());
    by_family_[&family] = {Share(std::move(closing)), Share(std::move(completing))};
  }
  any_closing_ = Share(std::move(any));
}

absl::Status CheckThinkingBudget(const ThinkingBudget& budget, const TokenBytes* bytes, int64_t vocab_size) {
  const auto invalid = [](const auto&... parts) {
    return absl::InvalidArgumentError(absl::StrCat("thinking.", parts...));
  };
  if (budget.max_tokens < 0) {
    return invalid("max_tokens is ", budget.max_tokens, "; it must be 0 or more");
  }
  if (!budget.opened.empty() && FindReasoningFamily(budget.opened) == nullptr) {
    return invalid("opened is '", budget.opened, "'; it must be empty or one of ", FamilyNames());
  }
  if (budget.close.empty()) return invalid("close is empty; it must have the closing mark of a family");
  if (bytes == nullptr) {
    return absl::FailedPreconditionError(
        "thinking: a budget of reasoning tokens needs the model's tokenizer, and this group has none: its "
        "model "
        "file has no tokenizer that is supported, and no tokenizer folder is given");
  }
  bool has_opened = budget.opened.empty();
  for (size_t i = 0; i < budget.close.size(); ++i) {
    const MarkIds& mark = budget.close[i];
    const auto name = [i] { return absl::StrCat("close[", i, "]"); };
    const ReasoningFamily* family = FindReasoningFamily(mark.family);
    if (family == nullptr) {
      return invalid(name(), ".family is '", mark.family, "'; it must be one of ", FamilyNames());
    }
    for (size_t j = 0; j < i; ++j) {
      if (budget.close[j].family == mark.family) {
        return invalid(name(), ".family is '", mark.family, "', as close[", j, "]'s is; each comes once");
      }
    }
    if (mark.ids.empty())
      return invalid(name(), ".ids is empty; it must be the tokens of ", ToAbsl(family->close));
    // A text before it: where the reasoning begins an opening mark is looked for too.
    std::string text;
    ReasoningSplitter splitter(family);
    splitter.Push("x", /*is_control=*/false, &text, &text);
    for (size_t j = 0; j < mark.ids.size(); ++j) {
      if (mark.ids[j] < 0 || mark.ids[j] >= vocab_size) {
        return invalid(name(), ".ids[", j, "] is ", mark.ids[j], "; token ids are 0 to ", vocab_size - 1);
      }
      Feed(&splitter, *bytes, mark.ids[j], &text);
    }
    if (splitter.state() != ReasoningState::kAnswering) {
      return invalid(name(), ".ids are [", absl::StrJoin(mark.ids, " "), "], which do not say ",
                     ToAbsl(family->close));
    }
    has_opened |= mark.family == budget.opened;
  }
  if (!has_opened) return invalid("close has no mark of '", budget.opened, "', which the prompt left open");
  return absl::OkStatus();
}

ThinkingTracker::ThinkingTracker(const ThinkingBudget& budget, const ThinkingTokens* tokens)
    : limit_(budget.max_tokens), tokens_(tokens), splitter_(FindReasoningFamily(budget.opened)) {
  for (const MarkIds& mark : budget.close) close_[FindReasoningFamily(mark.family)] = mark.ids;
}

ThinkingTracker::Decision ThinkingTracker::Decide(int64_t index, const std::vector<int32_t>& generated) {
  PHX_CHECK(index >= next_ && index - 1 <= static_cast<int64_t>(generated.size()),
            absl::StrCat("a decision about token ", index, " after ", next_, " and with ", generated.size()));
  while (next_ < index) DecideNext(generated);
  return DecideNext(generated);
}

ThinkingTracker::Decision ThinkingTracker::DecideNext(const std::vector<int32_t>& generated) {
  const int64_t p = next_++;
  if (done_) return {};
  if (forcing_ == nullptr) {
    for (; fed_ < p - 1; ++fed_) Feed(&splitter_, tokens_->bytes(), generated[fed_], &text_);
    if (splitter_.state() == ReasoningState::kUndecided) {
      return {-1, limit_ <= 1 ? tokens_->any_closing() : nullptr};
    }
    const auto close = close_.find(splitter_.family());
    if (splitter_.state() == ReasoningState::kAnswering || close == close_.end()) {
      done_ = true;
      return {};
    }
    const ReasoningFamily& family = *splitter_.family();
    const int64_t thought = splitter_.reasoning_tokens() + (p > 0 ? 1 : 0);
    if (thought < limit_) {
      put_off_ = 0;
      return {-1, thought + 1 == limit_ ? tokens_->closing(family) : nullptr};
    }
    if (splitter_.may_be_closing() && put_off_ < kMaxPutOff) {
      ++put_off_;
      return {-1, put_off_ == kMaxPutOff ? tokens_->completing(family) : tokens_->closing(family)};
    }
    forcing_ = &close->second;
  }
  const int32_t id = (*forcing_)[num_forced_++];
  done_ = num_forced_ == forcing_->size();
  return {id, nullptr};
}

}  // namespace phalanx
