#include "coordinator/generation.h"

#include <utility>

#include "absl/strings/str_cat.h"
#include "base/status_macros.h"

namespace phalanx::coordinator {

Generation::Generation(TokenLog log, int64_t num_prompt_tokens, std::unique_ptr<TextStream> text, double now)
    : log_(std::move(log)),
      num_prompt_tokens_(num_prompt_tokens),
      text_(std::move(text)),
      stops_(log_.sampling().stop),
      begun_(now) {}

absl::Status Generation::OnOutput(SequenceOutput output, double now, Told* told) {
  *told = Told();
  if (finished_ || output.attempt < log_.attempt()) return absl::OkStatus();
  OnScheduled(now);
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
  std::string piece;
  size_t taken = known;  // ids of this output that are told or were told before
  bool stopped = false;
  while (taken < output.token_ids.size() && !stopped) {
    const int32_t id = output.token_ids[taken++];
    if (text_ == nullptr) continue;
    // The text ends before the token that ends the generation.
    const bool ends = output.finish == FinishReason::kStop && output.stop_token_id == id &&
                      taken == output.token_ids.size();
    if (ends) continue;
    piece.clear();
    text_->Push(id, &piece);
    stopped = stops_.Feed(piece, &told->text);
  }
  if (!stopped && output.finish != FinishReason::kNone && text_ != nullptr) {
    piece.clear();
    text_->Finish(&piece);
    stopped = stops_.Feed(piece, &told->text);
    if (!stopped) stops_.Finish(&told->text);
  }
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
  return usage;
}

}  // namespace phalanx::coordinator
