#include "coordinator/generate_call.h"

#include <chrono>
#include <utility>

#include "absl/strings/str_cat.h"
#include "base/grpc_util.h"
#include "base/logging.h"
#include "coordinator/convert.h"

namespace phalanx::coordinator {
namespace {

// Prompts up to this size are tokenised on the gRPC thread: that takes less than handing them over twice.
constexpr size_t kInlineBytes = 4096;
// When a client may try again after UNAVAILABLE or RESOURCE_EXHAUSTED.
constexpr char kRetryAfterMs[] = "1000";

size_t PromptBytes(const RequestFields& fields) {
  size_t bytes = fields.text.size();
  for (const Message& message : fields.chat) bytes += message.content.size();
  return bytes;
}

}  // namespace

GenerateCall::GenerateCall(Coordinator* coordinator, grpc::CallbackServerContext* context)
    : LoopWriter(coordinator->loop(), context), coordinator_(coordinator) {
  coordinator_->loop()->Post([this] { coordinator_->Opened(this); });
}

void GenerateCall::Begin(const v1::GenerateRequest& request) {
  const auto hand_over = [this] { coordinator_->loop()->Post([this] { coordinator_->Dispatch(this); }); };
  prepared = [&]() -> absl::Status {
    if (absl::Status entered = coordinator_->in_flight().Enter(); !entered.ok()) return entered;
    admitted_ = true;
    auto found = coordinator_->registry().Find(request.model());
    if (!found.ok()) return found.status();
    model = *std::move(found);
    fields = ToFields(request);
    return CheckRequest(fields, model->limits);
  }();
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

void GenerateCall::Prepare() {
  auto ids = model->Tokenize(fields);
  if (ids.ok()) {
    prompt = *std::move(ids);
  } else {
    prepared = ids.status();
  }
}

void GenerateCall::Fail(const absl::Status& status, Queued queued) {
  if (closing()) return;
  if (absl::IsUnavailable(status) || absl::IsResourceExhausted(status)) {
    context()->AddTrailingMetadata("retry-after-ms", kRetryAfterMs);
  }
  spdlog::debug("request {}: {}", fields.request_id, status.ToString());
  Close(ToGrpc(status), queued);
}

void GenerateCall::SendStarted() {
  if (started_) return;
  started_ = true;
  Send(MakeStarted(fields.request_id, model->spec.name, static_cast<int64_t>(prompt.size()),
                   generation->log()));
}

void GenerateCall::OnSubmitResult(const internal::v1::SubmitResult& result) {
  switch (result.state()) {
    case internal::v1::SUBMIT_STATE_ACCEPTED:
      generation->OnScheduled(coordinator_->Now());
      SendStarted();
      return;
    case internal::v1::SUBMIT_STATE_QUEUED:
      SendStarted();
      return;
    case internal::v1::SUBMIT_STATE_REJECTED: {
      const std::string detail = absl::StrCat("group ", group, " refused the request: ", result.detail());
      coordinator_->Release(this, /*abort=*/false);
      const bool known = result.code() > 0 && result.code() <= 16;
      Fail(absl::Status(known ? static_cast<absl::StatusCode>(result.code()) : absl::StatusCode::kInternal,
                        detail));
      return;
    }
    default:
      coordinator_->Release(this, /*abort=*/true);
      Fail(absl::InternalError(
          absl::StrCat("group ", group, " answered with the unknown state ", result.state())));
  }
}

void GenerateCall::OnOutput(const internal::v1::SequenceOutput& output) {
  if (output.attempt() < generation->log().attempt()) return;
  if (output.error_code() != 0) {
    const bool known = output.error_code() > 0 && output.error_code() <= 16;
    const std::string detail = absl::StrCat("group ", group, ": ", output.error_detail());
    coordinator_->Release(this, /*abort=*/false);
    Fail(absl::Status(
        known ? static_cast<absl::StatusCode>(output.error_code()) : absl::StatusCode::kInternal, detail));
    return;
  }
  SendStarted();
  Told told;
  if (const absl::Status status = generation->OnOutput(ToOutput(output), coordinator_->Now(), &told);
      !status.ok()) {
    const absl::Status named(status.code(),
                             absl::StrCat("group ", group, ": ", std::string(status.message())));
    coordinator_->Release(this, /*abort=*/true);
    Fail(named);
    return;
  }
  if (!told.prompt_logprobs.empty()) Send(MakePromptLogprobs(told));
  if (told.has_chunk()) Send(MakeChunk(&told));
  if (generation->finished()) {
    Send(MakeFinished(told, generation->usage(coordinator_->Now())));
    coordinator_->Release(this, generation->wants_abort());
    Close(grpc::Status::OK);
  } else if (static_cast<int64_t>(num_queued()) > coordinator_->config().max_unsent) {
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
