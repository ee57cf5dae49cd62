#include "coordinator/generate_call.h"

#include <google/protobuf/arena.h>

#include <algorithm>
#include <chrono>
#include <utility>

#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "base/grpc_util.h"
#include "base/logging.h"
#include "base/status_macros.h"
#include "coordinator/convert.h"
#include "coordinator/wire.h"

namespace phalanx::coordinator {
namespace {

// Prompts up to this size are tokenised on the gRPC thread: that takes less than handing them over twice.
constexpr size_t kInlineBytes = 4096;

size_t PromptBytes(const RequestFields& fields) {
  constexpr size_t kEach = 64;  // what a message costs, whatever it holds
  size_t bytes = fields.text.size();
  for (const Message& message : fields.chat) {
    bytes += kEach + message.content.size() + message.reasoning.size() + message.tool_call_id.size() +
             message.name.size();
    for (const ToolCall& call : message.tool_calls) bytes += kEach + call.name.size() + call.arguments.size();
  }
  for (const std::string& tool : fields.chat_options.tools) bytes += tool.size();
  bytes += fields.chat_options.template_kwargs.size();
  // Of token ids, only those that are looked at for marks of reasoning.
  const bool looked_at = fields.splits_reasoning() || fields.sampling.max_reasoning_tokens;
  if (looked_at) bytes += fields.tokens.size();
  return bytes;
}

}  // namespace

GenerateCall::GenerateCall(Coordinator* coordinator, grpc::CallbackServerContext* context)
    : LoopWriter(coordinator->loop(), context), coordinator_(coordinator), received_(coordinator->Now()) {
  coordinator_->loop()->Post([this] { coordinator_->Opened(this); });
}

void GenerateCall::Begin(const grpc::ByteBuffer& bytes) {
  const auto hand_over = [this] { coordinator_->loop()->Post([this] { coordinator_->Dispatch(this); }); };
  prepared = Admit(bytes);
  if (!prepared.ok()) return hand_over();
  if (PromptBytes(fields) <= kInlineBytes) {
    Prepare();
    return hand_over();
  }
  coordinator_->pool()->Post([this, hand_over] {
    Prepare();
    hand_over();
  });
}

absl::Status GenerateCall::Admit(const grpc::ByteBuffer& bytes) {
  const auto enter = [this](int64_t count) -> absl::Status {
    PHX_RETURN_IF_ERROR(coordinator_->in_flight().Enter(count));
    admitted_ += count;
    return absl::OkStatus();
  };
  PHX_RETURN_IF_ERROR(enter(1));
  PHX_RETURN_IF_ERROR(coordinator_->AwaitModels());
  google::protobuf::Arena arena;  // a million parts are freed at once
  auto& request = *google::protobuf::Arena::CreateMessage<v1::GenerateRequest>(&arena);
  PHX_RETURN_IF_ERROR(Parse(bytes, &request));
  PHX_ASSIGN_OR_RETURN(model, coordinator_->registry().Find(request.model()));
  PHX_RETURN_IF_ERROR(CheckSizes(SizesOf(request), model->limits));
  PHX_ASSIGN_OR_RETURN(fields, ToFields(request));
  PHX_RETURN_IF_ERROR(CheckRequest(fields, model->limits));
  const int32_t choices_asked = fields.sampling.n.value_or(1);
  if (const int64_t most = coordinator_->config().max_in_flight; choices_asked > most) {
    // Not ResourceExhausted: clients try again after that.
    return absl::InvalidArgumentError(absl::StrCat("sampling.n is ", choices_asked,
                                                   "; this coordinator takes ", most,
                                                   " choices at once (--max-in-flight)"));
  }
  return choices_asked > 1 ? enter(choices_asked - 1) : absl::OkStatus();
}

void GenerateCall::Prepare() {
  auto ids = model->Tokenize(fields);
  if (!ids.ok()) {
    prepared = ids.status();
    return;
  }
  prompt = *std::move(ids);
  if (fields.splits_reasoning() || fields.sampling.max_reasoning_tokens) {
    opened = model->OpenedReasoning(fields, prompt);
  }
}

void GenerateCall::Fail(const absl::Status& status, Queued queued) {
  if (closing()) return;
  if (absl::IsUnavailable(status) || absl::IsResourceExhausted(status)) {
    const int64_t delay_ms = coordinator_->RetryDelayMs();
    context()->AddTrailingMetadata("retry-after-ms", absl::StrCat(delay_ms));
    context()->AddTrailingMetadata("grpc-retry-pushback-ms", absl::StrCat(delay_ms));
    Ended(status);
    return Close(ToGrpcWithRetry(status, delay_ms), queued);
  }
  Ended(status);
  Close(ToGrpc(status), queued);
}

void GenerateCall::Ended(const absl::Status& status) {
  if (ended_) return;
  ended_ = true;
  const double now = coordinator_->Now();
  // What others wrote must not forge lines of the log.
  const std::string name = model == nullptr ? "" : model->spec.name;
  const std::string id = absl::CEscape(fields.request_id);
  coordinator_->metrics().CallEnded(name, status.code());
  Generation::Usage sum;
  int64_t longest = 0;
  double first = -1;
  for (const Choice& choice : choices) {
    const Generation::Usage usage = choice.generation->usage(now);
    sum.completion_tokens += usage.completion_tokens;
    longest = std::max(longest, usage.completion_tokens);
    sum.queue_seconds = std::max(sum.queue_seconds, usage.queue_seconds);
    const double of_choice = choice.meter->first_token();
    if (of_choice >= 0 && (first < 0 || of_choice < first)) first = of_choice;
    absl::IsCancelled(status) ? choice.meter->Aborted() : choice.meter->Failed();
  }
  if (status.ok())
    coordinator_->metrics().OfModel(name)->longest_choice->Observe(static_cast<double>(longest));
  spdlog::level::level_enum level = spdlog::level::info;
  // Of these the coordinator says how many there are.
  if (absl::IsResourceExhausted(status)) level = spdlog::level::debug;
  if (absl::IsInternal(status) || absl::IsDataLoss(status) || absl::IsUnknown(status))
    level = spdlog::level::warn;
  if (!spdlog::should_log(level)) return;
  std::string line = absl::StrCat("request \"", id, "\": ", absl::StatusCodeToString(status.code()));
  if (!choices.empty()) {
    const char* const reason = !status.ok()                            ? ""
                               : choices.size() > 1                    ? ""
                               : last_finish_ == FinishReason::kLength ? " (length)"
                                                                       : " (stop)";
    absl::StrAppendFormat(
        &line, "%s, model '%s', group %s, %d prompt tokens, %d choices, %d tokens, queued %.3f s, ", reason,
        absl::CEscape(name), absl::CEscape(group), prompt.size(), choices.size(), sum.completion_tokens,
        sum.queue_seconds);
    if (first >= 0) absl::StrAppendFormat(&line, "first token %.3f s, ", first);
    absl::StrAppendFormat(&line, "total %.3f s", now - received_);
  } else {
    absl::StrAppendFormat(&line, " after %.3f s", now - received_);
  }
  if (!status.ok()) absl::StrAppend(&line, ": ", absl::CEscape(status.message()));
  spdlog::log(level, "{}", line);
}

void GenerateCall::FailAll(int code, const std::string& detail) {
  coordinator_->Release(this, /*abort=*/true);
  const bool known = code > 0 && code <= 16;
  Fail(absl::Status(known ? static_cast<absl::StatusCode>(code) : absl::StatusCode::kInternal, detail));
}

void GenerateCall::SendStarted() {
  if (started_) return;
  started_ = true;
  Send(Serialize(MakeStarted(fields.request_id, model->spec.name, static_cast<int64_t>(prompt.size()),
                             choices[0].generation->log())));
}

void GenerateCall::OnSubmitResult(uint32_t choice, const internal::v1::SubmitResult& result) {
  switch (result.state()) {
    case internal::v1::SUBMIT_STATE_ACCEPTED:
      choices[choice].generation->OnScheduled(coordinator_->Now());
      choices[choice].meter->Scheduled();
      SendStarted();
      return;
    case internal::v1::SUBMIT_STATE_QUEUED:
      SendStarted();
      return;
    case internal::v1::SUBMIT_STATE_REJECTED:
      coordinator_->Release(this, choice, /*abort=*/false);
      FailAll(result.code(), absl::StrCat("group ", group, " refused the request: ", result.detail()));
      return;
    default:
      FailAll(grpc::INTERNAL,
              absl::StrCat("group ", group, " answered with the unknown state ", result.state()));
  }
}

void GenerateCall::OnOutput(uint32_t choice, const internal::v1::SequenceOutput& output) {
  Generation& generation = *choices[choice].generation;
  if (output.attempt() < generation.log().attempt()) return;
  if (output.error_code() != 0) {
    coordinator_->Release(this, choice, /*abort=*/false);
    FailAll(output.error_code(), absl::StrCat("group ", group, ": ", output.error_detail()));
    return;
  }
  SendStarted();
  Told told;
  ChoiceMeter& meter = *choices[choice].meter;
  const double now = coordinator_->Now();
  if (const absl::Status status = generation.OnOutput(ToOutput(output), now, &told); !status.ok()) {
    FailAll(static_cast<int>(status.code()),
            absl::StrCat("group ", group, ": ", std::string(status.message())));
    return;
  }
  meter.Scheduled();
  meter.Said(told.token_ids.size(), now);
  if (!told.prompt_logprobs.empty()) Send(Serialize(MakePromptLogprobs(told)));
  if (told.has_chunk()) Send(Serialize(MakeChunk(choice, &told)));
  if (generation.finished()) {
    const Generation::Usage usage = generation.usage(now);
    last_finish_ = told.finish;
    meter.Finished(told.finish, usage, now);
    Send(Serialize(MakeFinished(choice, told, usage)));
    coordinator_->Release(this, choice, generation.wants_abort());
    const bool over =
        std::all_of(choices.begin(), choices.end(), [](const Choice& c) { return c.request == 0; });
    if (over) {
      Ended(absl::OkStatus());
      Close(grpc::Status::OK);
      return;
    }
  }
  // One message a choice and step.
  const auto most = coordinator_->config().max_unsent * static_cast<int64_t>(choices.size());
  if (!closing() && static_cast<int64_t>(num_queued()) > most) {
    const size_t unsent = num_queued();
    coordinator_->Release(this, /*abort=*/true);
    Fail(absl::ResourceExhaustedError(absl::StrCat("the client reads too slowly: ", unsent,
                                                   " messages wait to be sent (--max-unsent)")),
         Queued::kDrop);
  }
}

absl::Status GenerateCall::CancelReason() const {
  const auto deadline = const_cast<GenerateCall*>(this)->context()->deadline();
  return std::chrono::system_clock::now() >= deadline
             ? absl::DeadlineExceededError("the request's deadline passed")
             : absl::CancelledError("the client cancelled the request");
}

void GenerateCall::OnCancelled() {
  cancelled_ = true;
  if (!dispatched_) return;  // the pool may still use this; Dispatch will see it
  coordinator_->Release(this, /*abort=*/true);
  Fail(CancelReason(), Queued::kDrop);
}

void GenerateCall::OnGone() { coordinator_->Gone(this); }

}  // namespace phalanx::coordinator
