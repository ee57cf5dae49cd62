// A bidirectional gRPC stream opened by this process. One thread reads (Run's caller); writes go through a
// bounded queue and a thread of their own, so that no caller ever waits for a slow peer.
//
// The wait for a silent peer is bounded by the channel's pings (base/grpc_util.h), the one for a live peer
// that stopped reading by the queue's limit.
#pragma once

#include <grpcpp/grpcpp.h>

#include <chrono>
#include <deque>
#include <functional>
#include <memory>
#include <string>
#include <thread>
#include <utility>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "base/grpc_util.h"
#include "base/mutex.h"

namespace phalanx {

// Thread safety: Run is called once; Write and Cancel may be called by any thread at any time.
template <class Out, class In>
class ClientStream {
 public:
  using Stream = grpc::ClientReaderWriter<Out, In>;
  using Open = std::function<std::unique_ptr<Stream>(grpc::ClientContext*)>;

  explicit ClientStream(size_t max_queued) : max_queued_(max_queued) {}

  // Sent by the writing thread whenever `interval` has passed since the last one; call from `on_message` or
  // before Run.
  void SetPeriodic(std::chrono::milliseconds interval, std::function<Out()> make) {
    MutexLock lock(mu_);
    interval_ = interval;
    make_ = std::move(make);
    next_periodic_ = Clock::now() + interval;
    changed_.NotifyAll();
  }

  // Queues a message. A full queue ends the stream with ResourceExhausted; a message to an ended stream is
  // dropped. Of answers there are no more than the peer asked for: they do not count.
  enum class Kind { kOwn, kAnswer };
  void Write(Out message, Kind kind = Kind::kOwn) {
    {
      MutexLock lock(mu_);
      if (closed_) return;
      if (kind == Kind::kAnswer || num_own_ < max_queued_) {
        queue_.push_back({std::move(message), kind});
        num_own_ += kind == Kind::kOwn;
        changed_.NotifyAll();
        return;
      }
    }
    Cancel(absl::ResourceExhaustedError(
        absl::StrCat("the peer is too slow: ", max_queued_, " messages wait for it")));
  }

  // Waits until all that was queued is handed to the transport or the stream ended; false when `timeout`
  // passed first.
  bool Flush(std::chrono::milliseconds timeout) {
    const Clock::time_point deadline = Clock::now() + timeout;
    MutexLock lock(mu_);
    while (!closed_ && (writing_ || !queue_.empty())) {
      if (!changed_.WaitUntil(mu_, deadline)) return false;
    }
    return true;
  }

  // Ends the stream; Run returns `reason` (the first one given).
  void Cancel(absl::Status reason) {
    MutexLock lock(mu_);
    if (cancelled_.ok()) cancelled_ = std::move(reason);
    closed_ = true;
    changed_.NotifyAll();
    context_.TryCancel();
  }

  // Opens the stream and hands every message to `on_message` until the stream ends. Returns why it ended: the
  // peer's status (Unavailable where the peer closed it without an error), or Cancel's reason.
  absl::Status Run(const Open& open, const std::function<void(In&&)>& on_message) {
    std::unique_ptr<Stream> stream = open(&context_);
    std::thread writer([this, &stream] { WriteLoop(stream.get()); });
    In message;
    while (stream->Read(&message)) {
      on_message(std::move(message));
      message.Clear();
    }
    // The writer ends by itself: a pending write fails with the stream. Cancelling comes last, since it would
    // replace the peer's status.
    bool writing;
    {
      MutexLock lock(mu_);
      closed_ = true;
      changed_.NotifyAll();
      const Clock::time_point deadline = Clock::now() + std::chrono::seconds(1);
      while (!writer_done_ && changed_.WaitUntil(mu_, deadline)) {
      }
      writing = !writer_done_;
    }
    if (writing) context_.TryCancel();
    writer.join();
    const absl::Status end = FromGrpc(stream->Finish());
    MutexLock lock(mu_);
    if (!cancelled_.ok()) return cancelled_;
    return end.ok() ? absl::UnavailableError("the peer closed the stream") : end;
  }

 private:
  using Clock = CondVar::Clock;

  void WriteLoop(Stream* stream) {
    while (true) {
      Out message;
      std::function<Out()> make;  // set: a periodic message is due; made without the lock
      {
        MutexLock lock(mu_);
        while (!closed_ && queue_.empty() && !(make_ && Clock::now() >= next_periodic_)) {
          changed_.WaitUntil(mu_, make_ ? next_periodic_ : Clock::now() + std::chrono::seconds(1));
        }
        if (closed_) break;
        writing_ = true;
        if (!queue_.empty()) {
          message = std::move(queue_.front().message);
          num_own_ -= queue_.front().kind == Kind::kOwn;
          queue_.pop_front();
        } else {
          make = make_;
          next_periodic_ = Clock::now() + interval_;
        }
      }
      if (make) message = make();
      if (!stream->Write(message)) break;
      MutexLock lock(mu_);
      writing_ = false;
      if (queue_.empty()) changed_.NotifyAll();
    }
    MutexLock lock(mu_);
    closed_ = true;
    writer_done_ = true;
    changed_.NotifyAll();
  }

  const size_t max_queued_;
  grpc::ClientContext context_;
  Mutex mu_;
  CondVar changed_;
  struct Queued {
    Out message;
    Kind kind;
  };
  std::deque<Queued> queue_ ABSL_GUARDED_BY(mu_);
  size_t num_own_ ABSL_GUARDED_BY(mu_) = 0;  // of queue_
  bool closed_ ABSL_GUARDED_BY(mu_) = false;
  bool writing_ ABSL_GUARDED_BY(mu_) = false;
  bool writer_done_ ABSL_GUARDED_BY(mu_) = false;
  absl::Status cancelled_ ABSL_GUARDED_BY(mu_);
  std::chrono::milliseconds interval_ ABSL_GUARDED_BY(mu_){0};
  std::function<Out()> make_ ABSL_GUARDED_BY(mu_);
  Clock::time_point next_periodic_ ABSL_GUARDED_BY(mu_);
};

}  // namespace phalanx
