// The worker's registration with one coordinator (WorkerControl.Join): dials, says hello, beats, and dials
// again with back-off whenever the stream ends, until it is stopped.
#pragma once

#include <chrono>
#include <functional>
#include <memory>
#include <string>
#include <thread>

#include "absl/status/status.h"
#include "base/mutex.h"
#include "phalanx/internal/v1/worker_control.grpc.pb.h"
#include "worker/client_stream.h"

namespace phalanx {

// Thread safety: any thread. Events come from the link's thread, in order, without locks; none after Stop.
class CoordinatorLink {
 public:
  struct Events {
    std::function<void(const internal::v1::Assign&)> assign;
    std::function<void(const internal::v1::Release&)> release;
    // A stream that had been welcomed ended.
    std::function<void(const absl::Status& cause)> lost;
  };

  CoordinatorLink(std::string address, internal::v1::Hello hello,
                  std::function<internal::v1::Heartbeat()> heartbeat, Events events);
  ~CoordinatorLink();  // Stop

  const std::string& address() const { return address_; }
  // Dropped while there is no stream: the coordinator then knows nothing of the assignment either.
  void Send(const internal::v1::AssignmentStatus& status);
  // Waits, no longer than `timeout`, until what was sent is on its way.
  void Flush(std::chrono::milliseconds timeout);
  // Ends the stream and joins the thread.
  void Stop();

 private:
  using Stream = ClientStream<internal::v1::JoinRequest, internal::v1::JoinResponse>;

  void Run();
  // One stream's life; `*welcomed` tells whether the coordinator took this worker.
  absl::Status RunStream(internal::v1::WorkerControl::Stub* stub, bool* welcomed);

  const std::string address_;
  const internal::v1::Hello hello_;
  const std::function<internal::v1::Heartbeat()> heartbeat_;
  const Events events_;
  Mutex mu_;
  CondVar changed_;
  bool stopping_ ABSL_GUARDED_BY(mu_) = false;
  std::shared_ptr<Stream> stream_ ABSL_GUARDED_BY(mu_);
  std::thread thread_;
};

}  // namespace phalanx
