// One Generate call: n choices, each a request of its own to one group. Created on a gRPC thread, tokenised
// there or on the pool, then it belongs to the loop.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "coordinator/coordinator.h"
#include "coordinator/generation.h"
#include "coordinator/streams.h"
#include "phalanx/v1/inference.pb.h"

namespace phalanx::coordinator {

class GenerateCall : public LoopWriter<grpc::ServerWriteReactor<grpc::ByteBuffer>, grpc::ByteBuffer> {
 public:
  GenerateCall(Coordinator* coordinator, grpc::CallbackServerContext* context);

  // On the gRPC thread: parses and checks the request and gets it tokenised.
  void Begin(const grpc::ByteBuffer& bytes);

  // --- on the loop
  // ------------------------------------------------------------------------------------------------- Ends
  // the call with an error; where trying again may help, says when.
  void Fail(const absl::Status& status, Queued queued = Queued::kSend);
  void OnSubmitResult(uint32_t choice, const internal::v1::SubmitResult& result);
  void OnOutput(uint32_t choice, const internal::v1::SequenceOutput& output);

  // Set by Begin.
  RequestFields fields;
  std::shared_ptr<const LoadedModel> model;
  std::vector<int32_t> prompt;
  const ReasoningFamily* opened = nullptr;  // whose reasoning the prompt left open
  absl::Status prepared;                    // why it cannot be dispatched

  // Set by the coordinator when it submits the call.
  struct Choice {
    uint64_t request = 0;  // 0: over
    std::unique_ptr<Generation> generation;
    std::unique_ptr<ChoiceMeter> meter;
  };
  std::vector<Choice> choices;
  std::string group;

  bool cancelled() const { return cancelled_; }
  int64_t admitted() const { return admitted_; }

 private:
  void OnCancelled() override;
  void OnGone() override;
  absl::Status Admit(const grpc::ByteBuffer& bytes);
  void Prepare();
  // Ends the call where the group did: `code` is its own, of absl::StatusCode.
  void FailAll(int code, const std::string& detail);
  void SendStarted();
  absl::Status CancelReason() const;
  // Counts and logs how the call ended. The first time counts.
  void Ended(const absl::Status& status);

  Coordinator* const coordinator_;
  int64_t admitted_ = 0;     // counts in the in-flight limit
  bool dispatched_ = false;  // belongs to the loop alone
  bool cancelled_ = false;
  bool started_ = false;
  bool ended_ = false;
  FinishReason last_finish_ = FinishReason::kNone;
  const double received_;

  friend class Coordinator;
};

}  // namespace phalanx::coordinator
