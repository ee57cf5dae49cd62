// Reasoning and answer in a model's output. Models think between marks of their family; a mark may be one
// token (a control token or not) or text that spans tokens. Both sides need them: the coordinator splits the
// text, the leader counts what has been thought.
#pragma once

#include <cstdint>
#include <deque>
#include <string>
#include <string_view>
#include <vector>

namespace phalanx {

struct ReasoningFamily {
  std::string_view name;
  std::string_view open, close;                // around the reasoning
  std::string_view answer_open, answer_close;  // around the answer; "": none
};

// "think" (Phi-4-reasoning, Phi-4-mini-reasoning, DeepSeek-R1 and its distills, Qwen3) and "thought"
// (Bespoke-Stratos, OpenThinker).
const std::vector<ReasoningFamily>& ReasoningFamilies();
// Null for an unknown name.
const ReasoningFamily* FindReasoningFamily(std::string_view name);

// The family whose opening mark `prompt` ends with, but for white space: its reasoning goes on in the output.
// Null: none.
const ReasoningFamily* ReasoningOpenedAtEnd(std::string_view prompt);
// The family whose last opening mark in `text` comes after its last closing one. Null: none.
const ReasoningFamily* ReasoningLeftOpen(std::string_view text);

enum class ReasoningState { kUndecided, kThinking, kAnswering };

// Splits one output, fed token by token. The output thinks from the start when its prompt left a reasoning
// open; else if it begins, but for white space, with an opening mark; an opening mark later on is text like
// any other. After the closing mark all is answer. Marks are in neither text, nor is white space before an
// opening one; all other bytes are in one of them, as they came. Pure; linear in the output.
class ReasoningSplitter {
 public:
  // `opened`: the family whose reasoning the prompt left open, or null.
  explicit ReasoningSplitter(const ReasoningFamily* opened);

  // Appends what is certain. A control token is no text: it is left out unless it is a mark looked for.
  void Push(std::string_view bytes, bool is_control, std::string* reasoning, std::string* answer);
  // The output ended: what is held back was no mark.
  void Finish(std::string* reasoning, std::string* answer);

  ReasoningState state() const;
  // Of the reasoning; null while there was none.
  const ReasoningFamily* family() const { return family_; }
  // Tokens that began inside the reasoning and not inside one of its marks. While thinking, tokens that may
  // yet prove to be of the closing mark are counted.
  int64_t reasoning_tokens() const { return reasoning_tokens_; }
  // Thinking, and the last bytes may be the beginning of the closing mark.
  bool may_be_closing() const;

 private:
  // The first of each pair: white space and the beginning of a mark are held back.
  enum class Place { kStart, kThinkingStart, kThinking, kAnswerStart, kAnswer };

  bool IsSought(std::string_view mark) const;
  void TakeByte(char c, std::string* reasoning, std::string* answer);
  // In a start place: what is held is looked at with its white space left out.
  void TakeAtStart(std::string* reasoning, std::string* answer);
  // Looks for `mark` from here on; what precedes it goes to `out`. True when it was found.
  bool TakeBefore(std::string_view mark, std::string* out);
  void Enter(Place place);

  Place place_;
  const ReasoningFamily* family_;
  std::string held_;
  int64_t position_ = 0;       // bytes taken
  std::deque<int64_t> began_;  // positions where the last counted tokens began
  int64_t reasoning_tokens_ = 0;
};

}  // namespace phalanx
