#include "coordinator/generation.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "base/status_macros.h"

namespace phalanx::coordinator {

Generation::Generation(TokenLog log, int64_t num_prompt_tokens, Text text, double now)
    : log_(std::move(log)),
      num_prompt_tokens_(num_prompt_tokens),
      tokens_(std::move(text.tokens)),
      stops_(log_.sampling().stop),
      begun_(now) {
  if (text.split_reasoning) splitter_.emplace(text.opened);
}

bool Generation::TakeAnswer(bool look_for_stops, Told* told) {
  if (splitter_ && splitter_->state() == ReasoningState::kAnswering) reasoning_.Finish(&told->reasoning);
  piece_.clear();
  answer_.Feed(answer_bytes_, &piece_);
  if (look_for_stops) return stops_.Feed(piece_, &told->text);
  told->text += piece_;
  return false;
}

bool Generation::TakeToken(int32_t id, size_t number, Told* told) {
  // An id that the model has but its tokenizer has not (a padded vocabulary) stands for no text.
  if (id < 0 || static_cast<size_t>(id) >= tokens_->bytes.size()) return false;
  const std::string& bytes = tokens_->bytes[static_cast<size_t>(id)];
  const bool is_control = tokens_->is_control[static_cast<size_t>(id)];
  answer_bytes_.clear();
  if (splitter_) {
    reasoning_bytes_.clear();
    splitter_->Push(bytes, is_control, &reasoning_bytes_, &answer_bytes_);
    reasoning_.Feed(reasoning_bytes_, &told->reasoning);
  } else if (!is_control) {
    answer_bytes_ = bytes;
  }
  // A stop string lies wholly in the text of tokens that may end the generation.
  return TakeAnswer(number > static_cast<size_t>(log_.sampling().min_tokens), told);
}

bool Generation::TakeEnd(Told* told) {
  if (splitter_) {
    reasoning_bytes_.clear();
    answer_bytes_.clear();
    splitter_->Finish(&reasoning_bytes_, &answer_bytes_);
    reasoning_.Feed(reasoning_bytes_, &told->reasoning);
    reasoning_.Finish(&told->reasoning);
    if (TakeAnswer(true, told)) return true;
  }
  piece_.clear();
  answer_.Finish(&piece_);
  if (stops_.Feed(piece_, &told->text)) return true;
  stops_.Finish(&told->text);
  return false;
}

absl::Status Generation::OnOutput(SequenceOutput output, double now, Told* told) {
  *told = Told();
  if (finished_ || output.attempt < log_.attempt()) return absl::OkStatus();
  OnScheduled(now);
  if (cached_prompt_tokens_ < 0) cached_prompt_tokens_ = output.cached_prompt_tokens;
  const Sampling& sampling = log_.sampling();
  if (sampling.logprobs >= 0 && output.logprobs.size() != output.token_ids.size()) {
    return absl::InternalError(absl::StrCat("the group sent ", output.logprobs.size(),
                                            " log-probabilities for ", output.token_ids.size(), " tokens"));
  }
  const size_t before = log_.ids().size();
  PHX_ASSIGN_OR_RETURN(const size_t known, log_.Append(output.attempt, output.offset, output.token_ids));
  if (log_.ids().size() > static_cast<size_t>(sampling.max_tokens)) {
    return absl::InternalError(absl::StrCat("the group sent ", log_.ids().size(),
                                            " tokens, more than max_tokens ", sampling.max_tokens));
  }
  if (sampling.prompt_logprobs >= 0) {
    told->prompt_first_position = output.prompt_first_position;
    told->prompt_logprobs = std::move(output.prompt_logprobs);
  }
  if (known < output.token_ids.size() && first_token_ < 0) first_token_ = now;

  told->offset = static_cast<int32_t>(before);
  size_t taken = known;  // ids of this output that are told or were told before
  bool stopped = false;
  while (taken < output.token_ids.size() && !stopped) {
    const int32_t id = output.token_ids[taken++];
    if (tokens_ == nullptr) continue;
    // The text ends before the token that ends the generation.
    const bool ends = output.finish == FinishReason::kStop && output.stop_token_id == id &&
                      taken == output.token_ids.size();
    if (!ends) stopped = TakeToken(id, static_cast<size_t>(output.offset) + taken, told);
  }
  if (!stopped && output.finish != FinishReason::kNone && tokens_ != nullptr) stopped = TakeEnd(told);
  told->token_ids.assign(output.token_ids.begin() + static_cast<std::ptrdiff_t>(known),
                         output.token_ids.begin() + static_cast<std::ptrdiff_t>(taken));
  if (sampling.logprobs >= 0) {
    told->logprobs.assign(
        std::make_move_iterator(output.logprobs.begin() + static_cast<std::ptrdiff_t>(known)),
        std::make_move_iterator(output.logprobs.begin() + static_cast<std::ptrdiff_t>(taken)));
  }
  if (stopped) {
    log_.Truncate(before + told->token_ids.size());
    told->finish = FinishReason::kStop;
    told->matched_stop = stops_.matched();
    wants_abort_ = output.finish == FinishReason::kNone;
  } else if (output.finish != FinishReason::kNone) {
    told->finish = output.finish;
    if (output.finish == FinishReason::kStop) told->matched_stop_id = output.stop_token_id;
  }
  finished_ = told->finish != FinishReason::kNone;
  return absl::OkStatus();
}

Generation::Usage Generation::usage(double now) const {
  Usage usage;
  usage.prompt_tokens = num_prompt_tokens_;
  usage.completion_tokens = static_cast<int64_t>(log_.ids().size());
  usage.queue_seconds = (scheduled_ < 0 ? now : scheduled_) - begun_;
  usage.time_to_first_token_seconds = first_token_ < 0 ? 0 : first_token_ - begun_;
  usage.total_seconds = now - begun_;
  if (splitter_) usage.reasoning_tokens = splitter_->reasoning_tokens();
  usage.cached_prompt_tokens = std::max<int64_t>(cached_prompt_tokens_, 0);
  return usage;
}

}  // namespace phalanx::coordinator
