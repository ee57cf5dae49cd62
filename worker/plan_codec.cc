#include "worker/plan_codec.h"

#include <cmath>
#include <memory>
#include <utility>

#include "absl/strings/str_cat.h"

namespace phalanx {
namespace {

void ToProto(const TokenLogprobs& logprobs, v1::PositionLogprobs* out) {
  out->mutable_token()->set_id(logprobs.id);
  out->mutable_token()->set_logprob(logprobs.logprob);
  for (const auto& [id, logprob] : logprobs.top) {
    v1::TokenLogprob* top = out->add_top();
    top->set_id(id);
    top->set_logprob(logprob);
  }
}

v1::FinishReason ToProto(Finish finish) {
  switch (finish) {
    case Finish::kNone:
      return v1::FINISH_REASON_UNSPECIFIED;
    case Finish::kStop:
      return v1::FINISH_REASON_STOP;
    case Finish::kLength:
      return v1::FINISH_REASON_LENGTH;
  }
  return v1::FINISH_REASON_UNSPECIFIED;
}

}  // namespace

void ToProto(const StepPlan& plan, internal::v1::StepPlan* out) {
  out->Clear();
  out->set_step(plan.step);
  out->mutable_released()->Assign(plan.released.begin(), plan.released.end());
  for (const PlanBlocks& blocks : plan.blocks) {
    internal::v1::PlanBlocks* to = out->add_blocks();
    to->set_sequence(blocks.sequence);
    to->set_first_index(blocks.first_index);
    to->mutable_blocks()->Assign(blocks.blocks.begin(), blocks.blocks.end());
  }
  for (const PlanRow& row : plan.rows) {
    internal::v1::PlanRow* to = out->add_rows();
    to->set_sequence(row.sequence);
    to->set_first_position(row.first_position);
    to->mutable_tokens()->Assign(row.tokens.begin(), row.tokens.end());
    to->mutable_logit_offsets()->Assign(row.logit_offsets.begin(), row.logit_offsets.end());
    to->set_rope_mode(row.rope_mode);
  }
  out->set_checksum(plan.checksum);
}

StepPlan FromProto(const internal::v1::StepPlan& plan) {
  StepPlan out;
  out.step = plan.step();
  out.released.assign(plan.released().begin(), plan.released().end());
  out.blocks.reserve(plan.blocks_size());
  for (const internal::v1::PlanBlocks& blocks : plan.blocks()) {
    out.blocks.push_back(PlanBlocks{blocks.sequence(), blocks.first_index(),
                                    std::vector<int32_t>(blocks.blocks().begin(), blocks.blocks().end())});
  }
  out.rows.reserve(plan.rows_size());
  for (const internal::v1::PlanRow& row : plan.rows()) {
    out.rows.push_back(PlanRow{
        row.sequence(), row.first_position(), std::vector<int32_t>(row.tokens().begin(), row.tokens().end()),
        std::vector<int32_t>(row.logit_offsets().begin(), row.logit_offsets().end()), row.rope_mode()});
  }
  out.checksum = plan.checksum();
  return out;
}

void ToProto(const SequenceOutput& output, internal::v1::SequenceOutput* out) {
  out->Clear();
  out->set_request(output.request);
  out->set_attempt(output.attempt);
  out->set_offset(output.offset);
  out->mutable_token_ids()->Assign(output.tokens.begin(), output.tokens.end());
  for (const TokenLogprobs& logprobs : output.logprobs) ToProto(logprobs, out->add_logprobs());
  out->set_prompt_first_position(output.prompt_first_position);
  for (const TokenLogprobs& logprobs : output.prompt_logprobs) ToProto(logprobs, out->add_prompt_logprobs());
  out->set_finish(ToProto(output.finish));
  if (output.stop_id.has_value()) out->set_stop_token_id(*output.stop_id);
  if (!output.error.ok()) {
    out->set_error_code(static_cast<int32_t>(output.error.code()));
    out->set_error_detail(std::string(output.error.message()));
  }
  out->set_cached_prompt_tokens(output.cached_prompt_tokens);
}

absl::StatusOr<SequenceRequest> FromProto(const internal::v1::Submit& submit, uint64_t source) {
  if (!(submit.temperature() >= 0) || !std::isfinite(submit.temperature())) {
    return absl::InvalidArgumentError(
        absl::StrCat("temperature is ", submit.temperature(), "; it must be finite and at least 0"));
  }
  if (!(submit.top_p() > 0 && submit.top_p() <= 1)) {
    return absl::InvalidArgumentError(absl::StrCat("top_p is ", submit.top_p(), "; it must be in (0, 1]"));
  }
  if (submit.repetition_penalty() == 0) {
    return absl::InvalidArgumentError(
        "repetition_penalty is 0 or missing; it must be over 0, and 1 where there is none");
  }
  if (submit.top_k() < 0) {
    return absl::InvalidArgumentError(absl::StrCat("top_k is ", submit.top_k(), "; it must be at least 0"));
  }
  for (const auto& [name, value] :
       {std::pair{"logprobs", submit.logprobs()}, std::pair{"prompt_logprobs", submit.prompt_logprobs()}}) {
    if (value < -1 || value > kMaxTopLogprobs) {
      return absl::InvalidArgumentError(
          absl::StrCat(name, " is ", value, "; it must be between -1 (none) and ", kMaxTopLogprobs));
    }
  }
  SequenceRequest request;
  request.source = source;
  request.request = submit.request();
  request.attempt = submit.attempt();
  request.request_id = submit.request_id();
  request.prompt.assign(submit.prompt_ids().begin(), submit.prompt_ids().end());
  request.generated.assign(submit.generated_ids().begin(), submit.generated_ids().end());
  request.sampling.temperature = submit.temperature();
  request.sampling.top_k = submit.top_k();
  request.sampling.top_p = submit.top_p();
  request.sampling.seed = submit.seed();
  request.sampling.choice = submit.choice();
  request.max_tokens = submit.max_tokens();
  request.stop_ids.assign(submit.stop_token_ids().begin(), submit.stop_token_ids().end());
  request.logprobs = submit.logprobs();
  request.prompt_logprobs = submit.prompt_logprobs();
  request.rope_mode = submit.rope_mode();
  request.sampling.min_p = submit.min_p();
  request.sampling.repetition_penalty = submit.repetition_penalty();
  request.sampling.presence_penalty = submit.presence_penalty();
  request.sampling.frequency_penalty = submit.frequency_penalty();
  if (submit.logit_bias_size() > 0) {
    std::vector<TokenBias> bias;
    bias.reserve(submit.logit_bias_size());
    for (const internal::v1::LogitBias& b : submit.logit_bias()) bias.push_back({b.id(), b.bias()});
    request.sampling.bias = std::make_shared<const std::vector<TokenBias>>(std::move(bias));
  }
  request.min_tokens = submit.min_tokens();
  request.priority = submit.priority();
  request.cache_salt = submit.cache_salt();
  if (submit.has_thinking()) {
    ThinkingBudget& budget = request.thinking.emplace();
    budget.max_tokens = submit.thinking().max_tokens();
    budget.opened = submit.thinking().opened();
    for (const internal::v1::MarkIds& mark : submit.thinking().close()) {
      budget.close.push_back({mark.family(), {mark.ids().begin(), mark.ids().end()}});
    }
  }
  return request;
}

}  // namespace phalanx
