#include "base/reasoning.h"

#include <algorithm>
#include <utility>

namespace phalanx {
namespace {

constexpr std::string_view kWhiteSpace = " \t\n\v\f\r";

std::string_view StripRight(std::string_view text) {
  const size_t last = text.find_last_not_of(kWhiteSpace);
  return last == std::string_view::npos ? std::string_view() : text.substr(0, last + 1);
}

std::string_view StripLeft(std::string_view text) {
  const size_t first = text.find_first_not_of(kWhiteSpace);
  return first == std::string_view::npos ? std::string_view() : text.substr(first);
}

bool IsPrefix(std::string_view prefix, std::string_view of) { return of.substr(0, prefix.size()) == prefix; }

bool EndsWith(std::string_view text, std::string_view end) {
  return text.size() >= end.size() && text.substr(text.size() - end.size()) == end;
}

}  // namespace

const std::vector<ReasoningFamily>& ReasoningFamilies() {
  static const auto* const kFamilies = new std::vector<ReasoningFamily>{
      {"think", "<think>", "</think>", "", ""},
      {"thought", "<|begin_of_thought|>", "<|end_of_thought|>", "<|begin_of_solution|>",
       "<|end_of_solution|>"},
  };
  return *kFamilies;
}

const ReasoningFamily* FindReasoningFamily(std::string_view name) {
  for (const ReasoningFamily& family : ReasoningFamilies()) {
    if (family.name == name) return &family;
  }
  return nullptr;
}

const ReasoningFamily* ReasoningOpenedAtEnd(std::string_view prompt) {
  const std::string_view text = StripRight(prompt);
  for (const ReasoningFamily& family : ReasoningFamilies()) {
    if (EndsWith(text, family.open)) return &family;
  }
  return nullptr;
}

const ReasoningFamily* ReasoningLeftOpen(std::string_view text) {
  for (const ReasoningFamily& family : ReasoningFamilies()) {
    const size_t open = text.rfind(family.open);
    if (open != std::string_view::npos && text.find(family.close, open) == std::string_view::npos) {
      return &family;
    }
  }
  return nullptr;
}

ReasoningSplitter::ReasoningSplitter(const ReasoningFamily* opened)
    : place_(opened == nullptr ? Place::kStart : Place::kThinkingStart), family_(opened) {}

ReasoningState ReasoningSplitter::state() const {
  switch (place_) {
    case Place::kStart:
      return ReasoningState::kUndecided;
    case Place::kThinkingStart:
    case Place::kThinking:
      return ReasoningState::kThinking;
    default:
      return ReasoningState::kAnswering;
  }
}

bool ReasoningSplitter::may_be_closing() const {
  if (place_ == Place::kThinking) return !held_.empty();
  if (place_ != Place::kThinkingStart) return false;
  const std::string_view text = StripLeft(held_);  // the beginning of either mark
  return !text.empty() && IsPrefix(text, family_->close);
}

bool ReasoningSplitter::IsSought(std::string_view mark) const {
  switch (place_) {
    case Place::kStart:
      return std::any_of(ReasoningFamilies().begin(), ReasoningFamilies().end(), [&](const auto& family) {
        return mark == family.open || mark == family.answer_open;
      });
    case Place::kThinkingStart:
      return mark == family_->open || mark == family_->close;
    case Place::kThinking:
      return mark == family_->close;
    case Place::kAnswerStart:
      return mark == family_->answer_open || mark == family_->answer_close;
    case Place::kAnswer:
      return family_ != nullptr && mark == family_->answer_close;
  }
  return false;
}

void ReasoningSplitter::Enter(Place place) {
  place_ = place;
  held_.clear();
}

void ReasoningSplitter::Push(std::string_view bytes, bool is_control, std::string* reasoning,
                             std::string* answer) {
  const bool is_text = !is_control || IsSought(bytes);
  if (state() == ReasoningState::kThinking) {
    ++reasoning_tokens_;
    if (is_text) began_.push_back(position_);
    while (!began_.empty() && began_.front() + static_cast<int64_t>(held_.size()) < position_)
      began_.pop_front();
  }
  if (!is_text) return;
  for (const char c : bytes) TakeByte(c, reasoning, answer);
}

void ReasoningSplitter::TakeByte(char c, std::string* reasoning, std::string* answer) {
  ++position_;
  held_.push_back(c);
  switch (place_) {
    case Place::kStart:
    case Place::kThinkingStart:
    case Place::kAnswerStart:
      TakeAtStart(reasoning, answer);
      return;
    case Place::kThinking: {
      if (!TakeBefore(family_->close, reasoning)) return;
      const int64_t mark = position_ - static_cast<int64_t>(family_->close.size());
      for (; !began_.empty() && began_.back() >= mark; began_.pop_back()) --reasoning_tokens_;
      Enter(family_->answer_open.empty() ? Place::kAnswer : Place::kAnswerStart);
      return;
    }
    case Place::kAnswer:
      if (family_ == nullptr || family_->answer_close.empty()) {
        answer->append(std::exchange(held_, {}));
      } else if (TakeBefore(family_->answer_close, answer)) {
        Enter(Place::kAnswer);
      }
      return;
  }
}

void ReasoningSplitter::TakeAtStart(std::string* reasoning, std::string* answer) {
  const std::string_view text = StripLeft(held_);
  bool may_come = text.empty();
  for (const ReasoningFamily& family : ReasoningFamilies()) {
    if (place_ != Place::kStart && &family != family_) continue;
    if (place_ != Place::kAnswerStart) {
      if (text == family.open) {  // once more, where the prompt has it already
        family_ = &family;
        reasoning_tokens_ = 0;
        began_.clear();
        return Enter(Place::kThinking);
      }
      may_come |= IsPrefix(text, family.open);
    }
    if (place_ != Place::kThinkingStart && !family.answer_open.empty()) {
      if (text == family.answer_open) {
        family_ = &family;
        return Enter(Place::kAnswer);
      }
      may_come |= IsPrefix(text, family.answer_open);
    }
  }
  if (may_come) return;
  const std::string again = std::move(held_);
  Enter(place_ == Place::kThinkingStart ? Place::kThinking : Place::kAnswer);
  position_ -= static_cast<int64_t>(again.size());
  for (const char c : again) TakeByte(c, reasoning, answer);
}

bool ReasoningSplitter::TakeBefore(std::string_view mark, std::string* out) {
  if (held_ == mark) return true;
  while (!IsPrefix(held_, mark)) {
    out->push_back(held_.front());
    held_.erase(0, 1);
  }
  return false;
}

void ReasoningSplitter::Finish(std::string* reasoning, std::string* answer) {
  (state() == ReasoningState::kThinking ? reasoning : answer)->append(held_);
  held_.clear();
}

}  // namespace phalanx
