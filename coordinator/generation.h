// One choice's way from the group's output to what its client is told: token log, reasoning and answer, stop
// strings. Pure; times are seconds of any one clock, handed in.
//
// Invariants: chunks' offsets are consecutive; no token is told that is not in the log; after `finished`, and
// after an error, nothing follows.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "base/reasoning.h"
#include "base/token_bytes.h"
#include "coordinator/request.h"
#include "coordinator/text/detokenizer.h"
#include "coordinator/token_log.h"

namespace phalanx::coordinator {

// What the client is told, in this order: prompt log-probabilities, chunk, finished.
struct Told {
  int32_t prompt_first_position = 0;
  std::vector<PositionLogprobs> prompt_logprobs;

  int32_t offset = 0;
  std::vector<int32_t> token_ids;
  std::string reasoning;  // comes before `text`
  std::string text;
  std::vector<PositionLogprobs> logprobs;

  FinishReason finish = FinishReason::kNone;
  std::string matched_stop;                // when a stop string ended it
  std::optional<int32_t> matched_stop_id;  // when a token did

  bool has_chunk() const { return !token_ids.empty() || !reasoning.empty() || !text.empty(); }
};

class Generation {
 public:
  // How token ids become text.
  struct Text {
    std::shared_ptr<const TokenBytes> tokens;  // null: the model has no tokenizer, there is no text
    bool split_reasoning = false;              // else all of it is answer
    const ReasoningFamily* opened = nullptr;   // whose reasoning the prompt left open
  };
  Generation(TokenLog log, int64_t num_prompt_tokens, Text text, double now);

  // Takes what a step said; fills `told`. An error ends the request.
  absl::Status OnOutput(SequenceOutput output, double now, Told* told);
  // The group began to work on the request.
  void OnScheduled(double now) {
    if (scheduled_ < 0) scheduled_ = now;
  }

  bool finished() const { return finished_; }
  // The group need not go on: the text ended before the group's own end.
  bool wants_abort() const { return wants_abort_; }
  TokenLog& log() { return log_; }
  const TokenLog& log() const { return log_; }

  struct Usage {
    int64_t prompt_tokens = 0;
    int64_t completion_tokens = 0;
    double queue_seconds = 0;
    double time_to_first_token_seconds = 0;  // 0 without a token
    double total_seconds = 0;
    int64_t reasoning_tokens = 0;
    int64_t cached_prompt_tokens = 0;  // of the first attempt
  };
  Usage usage(double now) const;

 private:
  // Each appends what became certain to `told`. True: a stop string ended the text.
  bool TakeToken(int32_t id, size_t number, Told* told);
  bool TakeEnd(Told* told);
  bool TakeAnswer(bool look_for_stops, Told* told);

  TokenLog log_;
  const int64_t num_prompt_tokens_;
  const std::shared_ptr<const TokenBytes> tokens_;
  std::optional<ReasoningSplitter> splitter_;
  Utf8Stream reasoning_, answer_;
  std::string reasoning_bytes_, answer_bytes_, piece_;  // of the token at hand
  StopMatcher stops_;
  const double begun_;
  double scheduled_ = -1;
  double first_token_ = -1;
  int64_t cached_prompt_tokens_ = -1;  // not known yet
  bool finished_ = false;
  bool wants_abort_ = false;
};

}  // namespace phalanx::coordinator
