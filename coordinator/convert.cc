#include "coordinator/convert.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "base/status_macros.h"

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

void SizesOfChat(const v1::Chat& chat, RequestSizes* out) {
  out->prompt = PromptKind::kChat;
  out->messages = static_cast<size_t>(chat.messages_size());
  out->tools = static_cast<size_t>(chat.tools_size());
  for (const v1::ChatMessage& message : chat.messages()) {
    out->prompt_bytes += message.content().size() + message.reasoning().size() + message.role().size() +
                         message.tool_call_id().size() + message.name().size();
    out->tool_calls += static_cast<size_t>(message.tool_calls_size());
    for (const v1::ToolCall& call : message.tool_calls()) {
      out->prompt_bytes += call.id().size() + call.name().size() + call.arguments().size();
    }
  }
  for (const std::string& tool : chat.tools()) out->prompt_bytes += tool.size();
  out->prompt_bytes += chat.template_kwargs().size();
}

}  // namespace

RequestSizes SizesOf(const v1::GenerateRequest& request) {
  RequestSizes out;
  out.request_id_bytes = request.request_id().size();
  out.cache_salt_bytes = request.cache_salt().size();
  const v1::SamplingParams& sampling = request.sampling();
  out.stop_strings = static_cast<size_t>(sampling.stop_size());
  out.stop_token_ids = static_cast<size_t>(sampling.stop_token_ids_size());
  out.logit_bias = sampling.logit_bias().size();
  if (request.has_chat()) {
    SizesOfChat(request.chat(), &out);
  } else if (request.has_text()) {
    out.prompt = PromptKind::kText;
    out.prompt_bytes = request.text().size();
  } else if (request.has_tokens()) {
    out.prompt = PromptKind::kTokens;
    out.prompt_tokens = static_cast<size_t>(request.tokens().ids_size());
  }
  return out;
}

RequestSizes SizesOf(const v1::TokenizeRequest& request) {
  RequestSizes out;
  if (request.has_chat()) SizesOfChat(request.chat(), &out);
  return out;
}

absl::Status ToChat(const v1::Chat& chat, RequestFields* out) {
  if (!v1::SystemPrompt_IsValid(chat.system_prompt())) {
    return absl::InvalidArgumentError(
        absl::StrCat("chat.system_prompt is ", static_cast<int>(chat.system_prompt()),
                     "; it must be SYSTEM_PROMPT_HONOUR (1), _MODEL (2) or _APPEND (3)"));
  }
  out->prompt = PromptKind::kChat;
  out->chat.reserve(static_cast<size_t>(chat.messages_size()));
  for (const v1::ChatMessage& in : chat.messages()) {
    Message& message = out->chat.emplace_back();
    message.role = in.role();
    message.content = in.content();
    message.reasoning = in.reasoning();
    for (const v1::ToolCall& call : in.tool_calls()) {
      message.tool_calls.push_back({call.id(), call.name(), call.arguments()});
    }
    message.tool_call_id = in.tool_call_id();
    message.name = in.name();
  }
  ChatOptions& options = out->chat_options;
  options.tools.assign(chat.tools().begin(), chat.tools().end());
  if (chat.system_prompt() == v1::SYSTEM_PROMPT_MODEL) options.system_prompt = SystemPrompt::kModel;
  if (chat.system_prompt() == v1::SYSTEM_PROMPT_APPEND) options.system_prompt = SystemPrompt::kAppend;
  if (chat.has_add_generation_prompt()) options.add_generation_prompt = chat.add_generation_prompt();
  options.continue_final_message = chat.continue_final_message();
  options.template_kwargs = chat.template_kwargs();
  options.date = chat.date();
  return absl::OkStatus();
}

absl::StatusOr<RequestFields> ToFields(const v1::GenerateRequest& request) {
  RequestFields out;
  out.model = request.model();
  out.request_id = request.request_id();
  switch (request.prompt_case()) {
    case v1::GenerateRequest::kChat:
      PHX_RETURN_IF_ERROR(ToChat(request.chat(), &out));
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
  const v1::SamplingParams& in = request.sampling();
  SamplingFields& s = out.sampling;
  if (in.has_temperature()) s.temperature = in.temperature();
  if (in.has_top_k()) s.top_k = in.top_k();
  if (in.has_top_p()) s.top_p = in.top_p();
  if (in.has_min_p()) s.min_p = in.min_p();
  if (in.has_repetition_penalty()) s.repetition_penalty = in.repetition_penalty();
  if (in.has_presence_penalty()) s.presence_penalty = in.presence_penalty();
  if (in.has_frequency_penalty()) s.frequency_penalty = in.frequency_penalty();
  s.logit_bias.assign(in.logit_bias().begin(), in.logit_bias().end());
  std::sort(s.logit_bias.begin(), s.logit_bias.end());
  if (in.has_seed()) s.seed = in.seed();
  if (in.has_n()) s.n = in.n();
  if (in.has_min_tokens()) s.min_tokens = in.min_tokens();
  if (in.has_max_tokens()) s.max_tokens = in.max_tokens();
  if (in.has_max_reasoning_tokens()) s.max_reasoning_tokens = in.max_reasoning_tokens();
  s.stop.assign(in.stop().begin(), in.stop().end());
  s.stop_token_ids.assign(in.stop_token_ids().begin(), in.stop_token_ids().end());
  s.ignore_eos = in.ignore_eos();
  if (request.has_logprobs()) out.logprobs = request.logprobs();
  if (request.has_prompt_logprobs()) out.prompt_logprobs = request.prompt_logprobs();
  if (request.has_split_reasoning()) out.split_reasoning = request.split_reasoning();
  out.priority = request.priority();
  out.cache_salt = request.cache_salt();
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
  out.cached_prompt_tokens = in.cached_prompt_tokens();
  return out;
}

static_assert(static_cast<int>(KvType::kInt8) == v1::KV_CACHE_DTYPE_INT8);
static_assert(static_cast<int>(KvType::kFp8) == v1::KV_CACHE_DTYPE_FP8);
static_assert(v1::KvCacheDtype_ARRAYSIZE == std::size(kKvTypeNames));

ModelSpec ToSpec(const v1::ModelSpec& spec) {
  ModelSpec out;
  out.name = spec.name();
  out.path = spec.path();
  out.tensor_parallel = spec.tensor_parallel();
  out.shards = spec.shards();
  out.groups = spec.groups();
  out.compute = spec.compute() == v1::COMPUTE_FP32 ? Compute::kFp32 : Compute::kFast;
  out.context_length = spec.context_length();
  out.tokenizer = spec.tokenizer();
  out.rope = spec.rope() == v1::ROPE_AUTO ? Rope::kAuto : Rope::kLong;
  out.kv_type = static_cast<KvType>(spec.kv_cache_dtype());
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
  out.set_tokenizer(spec.tokenizer);
  out.set_rope(spec.rope == Rope::kAuto ? v1::ROPE_AUTO : v1::ROPE_LONG);
  out.set_kv_cache_dtype(static_cast<v1::KvCacheDtype>(spec.kv_type));
  return out;
}

WorkerInfo ToWorkerInfo(const internal::v1::Hello& hello) {
  WorkerInfo out;
  out.id = hello.worker_id();
  out.host = hello.host();
  out.workers_on_host = hello.workers_on_host();
  out.pid = hello.pid();
  out.device = hello.device();
  out.group_address = hello.group_address();
  out.memory_total_bytes = hello.memory_total_bytes();
  return out;
}

internal::v1::Submit MakeSubmit(uint64_t request, const std::string& request_id,
                                const std::vector<int32_t>& prompt, const TokenLog& log,
                                const ReasoningFamily* opened, const std::vector<CloseMark>& close_marks) {
  const Sampling& sampling = log.sampling();
  internal::v1::Submit out;
  out.set_request(request);
  out.set_request_id(request_id);
  out.set_attempt(log.attempt());
  out.mutable_prompt_ids()->Add(prompt.begin(), prompt.end());
  out.mutable_generated_ids()->Add(log.ids().begin(), log.ids().end());
  out.set_temperature(sampling.temperature);
  out.set_top_k(sampling.top_k);
  out.set_top_p(sampling.top_p);
  out.set_min_p(sampling.min_p);
  out.set_repetition_penalty(sampling.repetition_penalty);
  out.set_presence_penalty(sampling.presence_penalty);
  out.set_frequency_penalty(sampling.frequency_penalty);
  for (const auto& [id, value] : sampling.logit_bias) {
    internal::v1::LogitBias* bias = out.add_logit_bias();
    bias->set_id(id);
    bias->set_bias(value);
  }
  out.set_seed(sampling.seed);
  out.set_choice(sampling.choice);
  out.set_min_tokens(sampling.min_tokens);
  out.set_max_tokens(sampling.max_tokens);
  out.mutable_stop_token_ids()->Add(sampling.end_ids.begin(), sampling.end_ids.end());
  out.set_logprobs(sampling.logprobs);
  out.set_prompt_logprobs(sampling.prompt_logprobs);
  out.set_rope_mode(log.rope_mode());
  out.set_priority(sampling.priority);
  out.set_cache_salt(sampling.cache_salt);
  if (sampling.max_reasoning_tokens) {
    internal::v1::ThinkingBudget* thinking = out.mutable_thinking();
    thinking->set_max_tokens(*sampling.max_reasoning_tokens);
    if (opened != nullptr) thinking->set_opened(std::string(opened->name));
    for (const CloseMark& mark : close_marks) {
      internal::v1::MarkIds* close = thinking->add_close();
      close->set_family(mark.family);
      close->mutable_ids()->Add(mark.ids.begin(), mark.ids.end());
    }
  }
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
  resume->set_priority(sampling.priority);
  resume->set_cache_salt(sampling.cache_salt);
  v1::SamplingParams* params = resume->mutable_sampling();
  params->set_temperature(sampling.temperature);
  params->set_top_k(sampling.top_k);
  params->set_top_p(sampling.top_p);
  params->set_min_p(sampling.min_p);
  params->set_repetition_penalty(sampling.repetition_penalty);
  params->set_presence_penalty(sampling.presence_penalty);
  params->set_frequency_penalty(sampling.frequency_penalty);
  for (const auto& [id, bias] : sampling.logit_bias) (*params->mutable_logit_bias())[id] = bias;
  params->set_seed(sampling.seed);
  params->set_n(sampling.n);
  params->set_min_tokens(sampling.min_tokens);
  params->set_max_tokens(sampling.max_tokens);
  if (sampling.max_reasoning_tokens) params->set_max_reasoning_tokens(*sampling.max_reasoning_tokens);
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

v1::GenerateResponse MakeChunk(uint32_t choice, Told* told) {
  v1::GenerateResponse out;
  v1::Chunk* chunk = out.mutable_chunk();
  chunk->set_index(choice);
  chunk->set_offset(told->offset);
  chunk->mutable_token_ids()->Add(told->token_ids.begin(), told->token_ids.end());
  chunk->set_reasoning(std::move(told->reasoning));
  chunk->set_text(std::move(told->text));
  for (const PositionLogprobs& logprobs : told->logprobs) FromLogprobs(logprobs, chunk->add_logprobs());
  return out;
}

v1::GenerateResponse MakeFinished(uint32_t choice, const Told& told, const Generation::Usage& usage) {
  v1::GenerateResponse out;
  v1::Finished* finished = out.mutable_finished();
  finished->set_reason(told.finish == FinishReason::kStop ? v1::FINISH_REASON_STOP
                                                          : v1::FINISH_REASON_LENGTH);
  if (!told.matched_stop.empty()) finished->set_stop(told.matched_stop);
  if (told.matched_stop_id) finished->set_stop_token_id(*told.matched_stop_id);
  finished->set_index(choice);
  v1::Usage* out_usage = finished->mutable_usage();
  out_usage->set_prompt_tokens(static_cast<int32_t>(usage.prompt_tokens));
  out_usage->set_completion_tokens(static_cast<int32_t>(usage.completion_tokens));
  out_usage->set_queue_seconds(usage.queue_seconds);
  out_usage->set_time_to_first_token_seconds(usage.time_to_first_token_seconds);
  out_usage->set_total_seconds(usage.total_seconds);
  out_usage->set_reasoning_tokens(static_cast<int32_t>(usage.reasoning_tokens));
  out_usage->set_cached_prompt_tokens(static_cast<int32_t>(usage.cached_prompt_tokens));
  return out;
}

}  // namespace phalanx::coordinator
