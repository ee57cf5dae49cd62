// The leader's stream to one coordinator (GroupControl.Serve): requests in, tokens out. Opened again with
// back-off whenever it ends, until it is stopped.
#pragma once

#include <atomic>
#include <chrono>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <thread>

#include "absl/status/status.h"
#include "base/mutex.h"
#include "phalanx/internal/v1/group_control.grpc.pb.h"
#include "worker/client_stream.h"

namespace phalanx {

// Thread safety: any thread. Events come from the link's thread, in order, without locks; none after Stop.
class ServeLink {
 public:
  struct Events {
    std::function<void(uint64_t source, const internal::v1::Submit&)> submit;
    std::function<void(uint64_t source, uint64_t request)> abort;
    // A stream ended; nothing more comes from `source`, and what is sent to it is dropped.
    std::function<void(uint64_t source)> ended;
    // Sent every `load_interval`.
    std::function<internal::v1::LoadReport()> load;
  };

  // Every stream gets a number of its own from `next_source`, so that output of an earlier stream's requests
  // cannot reach a later one.
  ServeLink(std::string address, internal::v1::GroupHello hello, std::chrono::milliseconds load_interval,
            std::atomic<uint64_t>* next_source, Events events);
  ~ServeLink();  // Stop

  const std::string& address() const { return address_; }
  // Begins to dial. Called once.
  void Start();
  // Takes *message and returns true when `source` is this link's present stream. Never waits: a coordinator
  // too slow to take its messages loses the stream.
  bool Send(uint64_t source, internal::v1::ServeRequest* message);
  // Ends the stream and joins the thread.
  void Stop();

 private:
  using Stream = ClientStream<internal::v1::ServeRequest, internal::v1::ServeResponse>;

  void Run();
  absl::Status RunStream(internal::v1::GroupControl::Stub* stub);

  const std::string address_;
  const internal::v1::GroupHello hello_;
  const std::chrono::milliseconds load_interval_;
  std::atomic<uint64_t>* const next_source_;
  const Events events_;
  Mutex mu_;
  CondVar changed_;
  bool stopping_ ABSL_GUARDED_BY(mu_) = false;
  std::shared_ptr<Stream> stream_ ABSL_GUARDED_BY(mu_);
  uint64_t source_ ABSL_GUARDED_BY(mu_) = 0;  // of stream_
  std::thread thread_;
};

}  // namespace phalanx
