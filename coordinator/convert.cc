#include "coordinator/convert.h"

#include <utility>

namespace phalanx::coordinator {
namespace {

PositionLogprobs ToLogprobs(const v1::PositionLogprobs& in) {
  PositionLogprobs out;
  out.token = {in.token().id(), in.token().logprob()};
  out.top.reserve(static_cast<size_t>(in.top_size()));
  for (const v1::TokenLogprob& top : in.top()) out.top.push_back({top.id(), top.logprob()});
  return out;
}

void FromLogprobs(const PositionLogprobs& in, v1::PositionLogprobs* out) {
  out->mutable_token()->set_id(in.token.id);
  out->mutable_token()->set_logprob(in.token.logprob);
  for (const TokenLogprob& top : in.top) {
    v1::TokenLogprob* added = out->add_top();
    added->set_id(top.id);
    added->set_logprob(top.logprob);
  }
}

}  // namespace

RequestFields ToFields(const v1::GenerateRequest& request) {
  RequestFields out;
  out.model = request.model();
  out.request_id = request.request_id();
  switch (request.prompt_case()) {
    case v1::GenerateRequest::kChat:
      out.prompt = PromptKind::kChat;
      for (const v1::ChatMessage& message : request.chat().messages()) {
        out.chat.push_back({message.role(), message.content()});
      }
      break;
    case v1::GenerateRequest::kText:
      out.prompt = PromptKind::kText;
      out.text = request.text();
      break;
    case v1::GenerateRequest::kTokens:
      out.prompt = PromptKind::kTokens;
      out.tokens.assign(request.tokens().ids().begin(), request.tokens().ids().end());
      break;
    case v1::GenerateRequest::PROMPT_NOT_SET:
      break;
  }
  const v1::SamplingParams& sampling = request.sampling();
  if (sampling.has_temperature()) out.sampling.temperature = sampling.temperature();
  if (sampling.has_top_k()) out.sampling.top_k = sampling.top_k();
  if (sampling.has_top_p()) out.sampling.top_p = sampling.top_p();
  if (sampling.has_seed()) out.sampling.seed = sampling.seed();
  if (sampling.has_max_tokens()) out.sampling.max_tokens = sampling.max_tokens();
  out.sampling.stop.assign(sampling.stop().begin(), sampling.stop().end());
  out.sampling.stop_token_ids.assign(sampling.stop_token_ids().begin(), sampling.stop_token_ids().end());
  out.sampling.ignore_eos = sampling.ignore_eos();
  if (request.has_logprobs()) out.logprobs = request.logprobs();
  if (request.has_prompt_logprobs()) out.prompt_logprobs = request.prompt_logprobs();
  return out;
}

SequenceOutput ToOutput(const internal::v1::SequenceOutput& in) {
  SequenceOutput out;
  out.request = in.request();
  out.attempt = in.attempt();
  out.offset = in.offset();
  out.token_ids.assign(in.token_ids().begin(), in.token_ids().end());
  for (const auto& logprobs : in.logprobs()) out.logprobs.push_back(ToLogprobs(logprobs));
  out.prompt_first_position = in.prompt_first_position();
  for (const auto& logprobs : in.prompt_logprobs()) out.prompt_logprobs.push_back(ToLogprobs(logprobs));
  if (in.finish() == v1::FINISH_REASON_STOP) out.finish = FinishReason::kStop;
  if (in.finish() == v1::FINISH_REASON_LENGTH) out.finish = FinishReason::kLength;
  if (in.has_stop_token_id()) out.stop_token_id = in.stop_token_id();
  return out;
}

ModelSpec ToSpec(const v1::ModelSpec& spec) {
  ModelSpec out;
  out.name = spec.name();
  out.path = spec.path();
  out.tensor_parallel = spec.tensor_parallel();
  out.shards = spec.shards();
  out.groups = spec.groups();
  out.compute = spec.compute() == v1::COMPUTE_FP32 ? Compute::kFp32 : Compute::kFast;
  out.context_length = spec.context_length();
  return out;
}

v1::ModelSpec FromSpec(const ModelSpec& spec) {
  v1::ModelSpec out;
  out.set_name(spec.name);
  out.set_path(spec.path);
  out.set_tensor_parallel(spec.tensor_parallel);
  out.set_shards(spec.shards);
  out.set_groups(spec.groups);
  out.set_compute(spec.compute == Compute::kFp32 ? v1::COMPUTE_FP32 : v1::COMPUTE_FAST);
  out.set_context_length(spec.context_length);
  return out;
}

WorkerInfo ToWorkerInfo(const internal::v1::Hello& hello) {
  WorkerInfo out;
  out.id = hello.worker_id();
  out.host = hello.host();
  out.pid = hello.pid();
  out.device = hello.device();
  out.group_address = hello.group_address();
  out.memory_total_bytes = hello.memory_total_bytes();
  return out;
}

internal::v1::Submit MakeSubmit(uint64_t request, const std::vector<int32_t>& prompt, const TokenLog& log) {
  const Sampling& sampling = log.sampling();
  internal::v1::Submit out;
  out.set_request(request);
  out.set_attempt(log.attempt());
  out.mutable_prompt_ids()->Add(prompt.begin(), prompt.end());
  out.mutable_generated_ids()->Add(log.ids().begin(), log.ids().end());
  out.set_temperature(sampling.temperature);
  out.set_top_k(sampling.top_k);
  out.set_top_p(sampling.top_p);
  out.set_repetition_penalty(sampling.repetition_penalty);
  out.set_seed(sampling.seed);
  out.set_max_tokens(sampling.max_tokens);
  out.mutable_stop_token_ids()->Add(sampling.end_ids.begin(), sampling.end_ids.end());
  out.set_logprobs(sampling.logprobs);
  out.set_prompt_logprobs(sampling.prompt_logprobs);
  out.set_rope_mode(log.rope_mode());
  return out;
}

v1::GenerateResponse MakeStarted(const std::string& request_id, const std::string& model,
                                 int64_t prompt_tokens, const TokenLog& log) {
  v1::GenerateResponse out;
  v1::Started* started = out.mutable_started();
  started->set_request_id(request_id);
  started->set_model(model);
  started->set_prompt_tokens(static_cast<int32_t>(prompt_tokens));
  v1::ResumeHeader* resume = started->mutable_resume();
  const Sampling& sampling = log.sampling();
  resume->set_seed(sampling.seed);
  resume->set_rope_mode(log.rope_mode());
  resume->set_fingerprint(log.fingerprint());
  v1::SamplingParams* params = resume->mutable_sampling();
  params->set_temperature(sampling.temperature);
  params->set_top_k(sampling.top_k);
  params->set_top_p(sampling.top_p);
  params->set_seed(sampling.seed);
  params->set_max_tokens(sampling.max_tokens);
  for (const std::string& stop : sampling.stop) params->add_stop(stop);
  params->mutable_stop_token_ids()->Add(sampling.stop_token_ids.begin(), sampling.stop_token_ids.end());
  params->set_ignore_eos(sampling.ignore_eos);
  return out;
}

v1::GenerateResponse MakePromptLogprobs(const Told& told) {
  v1::GenerateResponse out;
  v1::PromptLogprobs* prompt = out.mutable_prompt_logprobs();
  prompt->set_first_position(told.prompt_first_position);
  for (const PositionLogprobs& logprobs : told.prompt_logprobs)
    FromLogprobs(logprobs, prompt->add_positions());
  return out;
}

v1::GenerateResponse MakeChunk(Told* told) {
  v1::GenerateResponse out;
  v1::Chunk* chunk = out.mutable_chunk();
  chunk->set_offset(told->offset);
  chunk->mutable_token_ids()->Add(told->token_ids.begin(), told->token_ids.end());
  chunk->set_text(std::move(told->text));
  for (const PositionLogprobs& logprobs : told->logprobs) FromLogprobs(logprobs, chunk->add_logprobs());
  return out;
}

v1::GenerateResponse MakeFinished(const Told& told, const Generation::Usage& usage) {
  v1::GenerateResponse out;
  v1::Finished* finished = out.mutable_finished();
  finished->set_reason(told.finish == FinishReason::kStop ? v1::FINISH_REASON_STOP
                                                          : v1::FINISH_REASON_LENGTH);
  if (!told.matched_stop.empty()) finished->set_stop(told.matched_stop);
  if (told.matched_stop_id) finished->set_stop_token_id(*told.matched_stop_id);
  v1::Usage* out_usage = finished->mutable_usage();
  out_usage->set_prompt_tokens(static_cast<int32_t>(usage.prompt_tokens));
  out_usage->set_completion_tokens(static_cast<int32_t>(usage.completion_tokens));
  out_usage->set_queue_seconds(usage.queue_seconds);
  out_usage->set_time_to_first_token_seconds(usage.time_to_first_token_seconds);
  out_usage->set_total_seconds(usage.total_seconds);
  return out;
}

}  // namespace phalanx::coordinator
