// The streams that workers (Join) and leaders (Serve) open to the coordinator.
#pragma once

#include <string>

#include "coordinator/coordinator.h"
#include "coordinator/streams.h"

namespace phalanx::coordinator {

class WorkerStream : public LoopStream<internal::v1::JoinRequest, internal::v1::JoinResponse> {
 public:
  WorkerStream(Coordinator* coordinator, grpc::CallbackServerContext* context);

  bool joined() const { return session_ != 0; }
  EventLoop::Clock::time_point opened() const { return opened_; }

 private:
  void OnMessage(internal::v1::JoinRequest& message) override;
  void OnEnd() override;
  void OnGone() override;

  Coordinator* const coordinator_;
  const EventLoop::Clock::time_point opened_ = EventLoop::Clock::now();
  Session session_ = 0;
};

class GroupStream : public LoopStream<internal::v1::ServeRequest, internal::v1::ServeResponse> {
 public:
  GroupStream(Coordinator* coordinator, grpc::CallbackServerContext* context);

  bool joined() const { return !group_.empty(); }
  EventLoop::Clock::time_point opened() const { return opened_; }

 private:
  void OnMessage(internal::v1::ServeRequest& message) override;
  void OnEnd() override;
  void OnGone() override;
  void Leave(const std::string& reason);

  Coordinator* const coordinator_;
  const EventLoop::Clock::time_point opened_ = EventLoop::Clock::now();
  std::string group_;
  uint64_t epoch_ = 0;
};

}  // namespace phalanx::coordinator
