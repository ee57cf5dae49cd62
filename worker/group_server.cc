#include "worker/group_server.h"

#include <map>
#include <utility>

#include "base/logging.h"
#include "worker/plan_codec.h"

namespace phalanx {
namespace {

internal::v1::LoadReport ToReport(const LeaderStats& stats) {
  internal::v1::LoadReport report;
  report.set_kv_blocks_used(stats.load.blocks_used);
  report.set_running(stats.load.running);
  report.set_queued(stats.load.queued);
  report.set_generated_tokens(stats.generated_tokens);
  report.set_tokens_per_second(stats.tokens_per_second);
  report.set_kv_blocks_cached(stats.load.blocks_cached);
  report.set_prefix_query_tokens(stats.load.prefix_query_tokens);
  report.set_prefix_hit_tokens(stats.load.prefix_hit_tokens);
  report.set_preemptions(stats.load.preemptions);
  report.set_drafted_tokens(stats.load.drafted_tokens);
  report.set_accepted_tokens(stats.load.accepted_tokens);
  return report;
}

}  // namespace

void GroupServer::StartLinks(Leader* leader, const std::vector<std::string>& coordinators,
                             const internal::v1::GroupHello& hello, std::chrono::milliseconds load_interval) {
  ServeLink::Events events;
  events.submit = [this, leader](uint64_t source, const internal::v1::Submit& submit) {
    absl::StatusOr<SequenceRequest> request = FromProto(submit, source);
    const absl::Status status = request.ok() ? leader->Submit(*std::move(request)) : request.status();
    if (!status.ok()) OnSubmitResult({source, submit.request(), submit.attempt(), status});
  };
  events.abort = [leader](uint64_t source, uint64_t request) { leader->Abort(source, request); };
  events.ended = [leader](uint64_t source) { leader->AbortSource(source); };
  events.load = [leader] { return ToReport(leader->stats()); };
  links_.reserve(coordinators.size());
  for (const std::string& address : coordinators) {
    links_.push_back(std::make_unique<ServeLink>(address, hello, load_interval, &next_source_, events));
  }
  for (const auto& link : links_) link->Start();
}

void GroupServer::StopLinks() {
  for (const auto& link : links_) link->Stop();
}

absl::Status GroupServer::SendPlan(const StepPlan& plan) {
  internal::v1::StepPlan message;
  ToProto(plan, &message);
  return followers_->Send(message);
}

void GroupServer::OnSubmitResult(const SubmitResult& result) {
  internal::v1::ServeRequest message;
  internal::v1::SubmitResult* out = message.mutable_submit_result();
  out->set_request(result.request);
  out->set_attempt(result.attempt);
  if (!result.admission.ok()) {
    out->set_state(internal::v1::SUBMIT_STATE_REJECTED);
    out->set_code(static_cast<int32_t>(result.admission.status().code()));
    out->set_detail(std::string(result.admission.status().message()));
  } else {
    out->set_state(*result.admission == Admission::kAccepted ? internal::v1::SUBMIT_STATE_ACCEPTED
                                                             : internal::v1::SUBMIT_STATE_QUEUED);
  }
  Send(result.source, std::move(message));
}

void GroupServer::OnStep(uint64_t step, std::vector<SequenceOutput> outputs) {
  std::map<uint64_t, internal::v1::ServeRequest> messages;  // by source: one for each coordinator in the step
  for (const SequenceOutput& output : outputs) {
    internal::v1::StepOutput* message = messages[output.source].mutable_output();
    message->set_step(step);
    ToProto(output, message->add_sequences());
  }
  for (auto& [source, message] : messages) Send(source, std::move(message));
}

void GroupServer::Send(uint64_t source, internal::v1::ServeRequest message) {
  for (const auto& link : links_) {
    if (link->Send(source, &message)) return;
  }
}

}  // namespace phalanx
