#include "coordinator/control_streams.h"

#include "absl/strings/str_cat.h"
#include "base/grpc_util.h"
#include "base/logging.h"

namespace phalanx::coordinator {

WorkerStream::WorkerStream(Coordinator* coordinator, grpc::CallbackServerContext* context)
    : LoopStream(coordinator->loop(), context), coordinator_(coordinator) {
  coordinator_->loop()->Post([this] {
    coordinator_->Opened(this);
    Begin();
  });
}

void WorkerStream::OnMessage(internal::v1::JoinRequest& message) {
  using Case = internal::v1::JoinRequest;
  if (!joined()) {
    const absl::Status status = message.message_case() == Case::kHello
                                    ? coordinator_->Join(this, message.hello(), &session_)
                                    : absl::InvalidArgumentError("the first message of Join must be hello");
    if (!status.ok()) {
      spdlog::warn("worker {} refused: {}", message.hello().worker_id(), std::string(status.message()));
      Close(ToGrpc(status));
    }
    return;
  }
  switch (message.message_case()) {
    case Case::kHeartbeat:
      return coordinator_->Heartbeat(session_, message.heartbeat());
    case Case::kAssignment:
      return coordinator_->RankChanged(session_, message.assignment());
    case Case::kHello:
    case Case::MESSAGE_NOT_SET:
      coordinator_->Left(session_, "it sent a second hello or an unknown message");
      Close(grpc::Status(grpc::INVALID_ARGUMENT,
                         "a message of Join after the first must be heartbeat or assignment"));
  }
}

void WorkerStream::OnEnd() {
  if (joined()) coordinator_->Left(session_, "its stream ended");
}

void WorkerStream::OnGone() {
  OnEnd();
  coordinator_->Gone(this);
}

GroupStream::GroupStream(Coordinator* coordinator, grpc::CallbackServerContext* context)
    : LoopStream(coordinator->loop(), context), coordinator_(coordinator) {
  coordinator_->loop()->Post([this] {
    coordinator_->Opened(this);
    Begin();
  });
}

void GroupStream::OnMessage(internal::v1::ServeRequest& message) {
  using Case = internal::v1::ServeRequest;
  if (!joined()) {
    if (message.message_case() != Case::kHello) {
      return Close(grpc::Status(grpc::INVALID_ARGUMENT, "the first message of Serve must be hello"));
    }
    const internal::v1::GroupHello& hello = message.hello();
    // Before Serve: it may make the group ready, which looks for this stream.
    group_ = hello.group_id();
    epoch_ = hello.epoch();
    if (const absl::Status status = coordinator_->Serve(this, hello); !status.ok()) {
      spdlog::warn("leader of {} (epoch {}) refused: {}", group_, epoch_, std::string(status.message()));
      group_.clear();
      Close(ToGrpc(status));
    }
    return;
  }
  switch (message.message_case()) {
    case Case::kSubmitResult:
      return coordinator_->Submitted(message.submit_result());
    case Case::kOutput:
      return coordinator_->Output(message.output());
    case Case::kLoad:
      return coordinator_->Load(group_, epoch_, message.load());
    case Case::kHello:
    case Case::MESSAGE_NOT_SET:
      Leave("it sent a second hello or an unknown message");
      Close(grpc::Status(grpc::INVALID_ARGUMENT,
                         "a message of Serve after the first must be submit_result, output or load"));
  }
}

void GroupStream::Leave(const std::string& reason) {
  if (joined()) coordinator_->LeaderLeft(group_, epoch_, reason);
}

void GroupStream::OnEnd() { Leave("its stream ended"); }

void GroupStream::OnGone() {
  OnEnd();
  coordinator_->Gone(this);
}

}  // namespace phalanx::coordinator
