// gRPC reactors whose whole life runs on one EventLoop: callbacks post, everything else happens on the loop.
// A reactor is deleted on the loop by the last thing it posts, so a task of the loop that finds one in a
// table may use it.
//
// Threads: constructors run on a gRPC thread; all other methods run on the loop, except where gRPC calls
// them.
#pragma once

#include <grpcpp/grpcpp.h>

#include <chrono>
#include <deque>
#include <string>
#include <utility>

#include "coordinator/event_loop.h"

namespace phalanx::coordinator {

// What server-streaming and bidirectional reactors share: the queue of writes and the end. `Base` is the gRPC
// reactor.
template <typename Base, typename Response>
class LoopWriter : public Base {
 public:
  LoopWriter(EventLoop* loop, grpc::CallbackServerContext* context) : loop_(loop), context_(context) {}

  // Queues a message; dropped once the stream is closing.
  void Send(Response message) {
    if (closing_) return;
    queue_.push_back(std::move(message));
    if (!writing_) WriteNext();
  }
  // Ends the stream, after what is queued unless that is dropped. The first call counts.
  enum class Queued { kSend, kDrop };
  void Close(grpc::Status status, Queued queued = Queued::kSend) {
    if (closing_) return;
    closing_ = true;
    status_ = std::move(status);
    progress_ = EventLoop::Clock::now();
    if (queued == Queued::kDrop) queue_.clear();
    if (!writing_ && queue_.empty()) FinishNow();
  }
  // To be called about once a second: cuts off a peer that keeps a closing stream from its end.
  void CutIfStuck(EventLoop::Clock::time_point now) {
    if (closing_ && !finished_ && now - progress_ >= kPatience) context_->TryCancel();
  }

  bool closing() const { return closing_; }
  size_t num_queued() const { return queue_.size(); }
  grpc::CallbackServerContext* context() { return context_; }

 protected:
  EventLoop* loop() { return loop_; }
  // The call was cancelled or its connection broke. Runs on the loop, maybe after Close.
  virtual void OnCancelled() = 0;
  // Nothing more will happen; `this` is deleted afterwards. Runs on the loop.
  virtual void OnGone() = 0;

 private:
  void OnWriteDone(bool ok) final {
    loop_->Post([this, ok] {
      writing_ = false;
      progress_ = EventLoop::Clock::now();
      if (!ok) queue_.clear();  // the peer is gone; OnCancelled follows
      if (!queue_.empty()) {
        WriteNext();
      } else if (closing_) {
        FinishNow();
      }
    });
  }
  void OnCancel() final {
    loop_->Post([this] { OnCancelled(); });
  }
  void OnDone() final {
    loop_->Post([this] {
      OnGone();
      delete this;
    });
  }

  void WriteNext() {
    writing_ = true;
    current_ = std::move(queue_.front());
    queue_.pop_front();
    this->StartWrite(&current_);
  }
  void FinishNow() {
    if (finished_) return;
    finished_ = true;
    this->Finish(status_);
  }

  // How long a closing stream waits for its peer to take one message.
  static constexpr std::chrono::seconds kPatience{10};

  EventLoop* const loop_;
  grpc::CallbackServerContext* const context_;
  std::deque<Response> queue_;
  Response current_;
  bool writing_ = false;
  bool closing_ = false;
  bool finished_ = false;
  grpc::Status status_;
  EventLoop::Clock::time_point progress_;
};

template <typename Request, typename Response>
class LoopStream : public LoopWriter<grpc::ServerBidiReactor<Request, Response>, Response> {
 public:
  using LoopWriter<grpc::ServerBidiReactor<Request, Response>, Response>::LoopWriter;

  // Begins to read. Messages come one by one: the next is read once the last was handled.
  void Begin() { this->StartRead(&incoming_); }

 protected:
  virtual void OnMessage(Request& message) = 0;
  // The peer will send no more, by its own wish or because the connection broke. Once.
  virtual void OnEnd() = 0;

 private:
  void OnReadDone(bool ok) final {
    this->loop()->Post([this, ok] {
      if (!ok) {
        OnEnd();
        this->Close(grpc::Status::OK);
        return;
      }
      if (this->closing()) return;
      OnMessage(incoming_);
      if (!this->closing()) this->StartRead(&incoming_);
    });
  }
  void OnCancelled() override { this->Close(grpc::Status::CANCELLED); }

  Request incoming_;
};

}  // namespace phalanx::coordinator
