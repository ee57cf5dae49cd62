#include "worker/serve_link.h"

#include <algorithm>
#include <utility>

#include "base/grpc_util.h"
#include "base/logging.h"

namespace phalanx {
namespace {

using internal::v1::ServeRequest;
using internal::v1::ServeResponse;

constexpr std::chrono::milliseconds kFirstBackoff{100};
constexpr std::chrono::milliseconds kLongestBackoff{2000};
// Steps of tokens that may wait for a coordinator: over a second of the smallest model, which makes 5,000 a
// second, and half a minute of a fast one. About 13 KB each where 64 sequences want 20 log-probabilities.
constexpr size_t kMaxQueued = 8192;

}  // namespace

ServeLink::ServeLink(std::string address, internal::v1::GroupHello hello,
                     std::chrono::milliseconds load_interval, std::atomic<uint64_t>* next_source,
                     Events events)
    : address_(std::move(address)),
      hello_(std::move(hello)),
      load_interval_(load_interval),
      next_source_(next_source),
      events_(std::move(events)) {}

void ServeLink::Start() {
  thread_ = std::thread([this] { Run(); });
}

ServeLink::~ServeLink() { Stop(); }

void ServeLink::Stop() {
  {
    MutexLock lock(mu_);
    stopping_ = true;
    if (stream_ != nullptr) stream_->Cancel(absl::CancelledError("the group ended"));
    changed_.NotifyAll();
  }
  if (thread_.joinable()) thread_.join();
}

bool ServeLink::Send(uint64_t source, ServeRequest* message) {
  MutexLock lock(mu_);
  if (stream_ == nullptr || source_ != source) return false;
  // A long step with a burst of requests behind it answers them all at once.
  const auto kind = message->has_submit_result() ? Stream::Kind::kAnswer : Stream::Kind::kOwn;
  stream_->Write(std::move(*message), kind);
  return true;
}

absl::Status ServeLink::RunStream(internal::v1::GroupControl::Stub* stub) {
  auto stream = std::make_shared<Stream>(kMaxQueued);
  const uint64_t source = next_source_->fetch_add(1);
  {
    MutexLock lock(mu_);
    if (stopping_) return absl::CancelledError("the group ended");
    stream_ = stream;
    source_ = source;
  }
  ServeRequest hello;
  *hello.mutable_hello() = hello_;
  stream->Write(std::move(hello));
  stream->SetPeriodic(load_interval_, [this] {
    ServeRequest report;
    *report.mutable_load() = events_.load();
    return report;
  });
  const absl::Status status = stream->Run(
      [stub](grpc::ClientContext* context) { return stub->Serve(context); },
      [&](ServeResponse&& message) {
        switch (message.message_case()) {
          case ServeResponse::kSubmit:
            events_.submit(source, message.submit());
            break;
          case ServeResponse::kAbort:
            events_.abort(source, message.abort().request());
            break;
          case ServeResponse::MESSAGE_NOT_SET:
            spdlog::warn("coordinator {} sent a message that this version does not know", address_);
            break;
        }
      });
  {
    MutexLock lock(mu_);
    stream_.reset();
  }
  events_.ended(source);
  return status;
}

void ServeLink::Run() {
  const auto stub = internal::v1::GroupControl::NewStub(
      grpc::CreateCustomChannel(address_, grpc::InsecureChannelCredentials(), InternalChannelArguments()));
  std::chrono::milliseconds backoff = kFirstBackoff;
  std::string last_message;
  while (true) {
    const CondVar::Clock::time_point began = CondVar::Clock::now();
    const absl::Status status = RunStream(stub.get());
    // A stream that lived is a fresh start; one refused at once is not.
    if (CondVar::Clock::now() - began > kLongestBackoff) backoff = kFirstBackoff;
    MutexLock lock(mu_);
    if (stopping_) return;
    if (status.message() != last_message) {
      spdlog::warn("group {} epoch {}: the stream to coordinator {} ended: {}; opening it again",
                   hello_.group_id(), hello_.epoch(), address_, status.ToString());
      last_message = std::string(status.message());
    }
    const CondVar::Clock::time_point until = CondVar::Clock::now() + backoff;
    backoff = std::min(backoff * 2, kLongestBackoff);
    while (!stopping_ && changed_.WaitUntil(mu_, until)) {
    }
    if (stopping_) return;
  }
}

}  // namespace phalanx
