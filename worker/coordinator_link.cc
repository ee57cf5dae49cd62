#include "worker/coordinator_link.h"

#include <algorithm>
#include <chrono>
#include <random>
#include <utility>

#include "base/grpc_util.h"
#include "base/logging.h"

namespace phalanx {
namespace {

using internal::v1::JoinRequest;
using internal::v1::JoinResponse;

// Dialled this often for the first second, since the two often start together; then ever less often.
constexpr std::chrono::milliseconds kFirstBackoff{20};
constexpr std::chrono::seconds kSoon{1};
constexpr std::chrono::milliseconds kLongestBackoff{3000};
// A coordinator that stays away is mentioned this often.
constexpr std::chrono::seconds kLogInterval{30};
constexpr size_t kMaxQueued = 1024;

}  // namespace

CoordinatorLink::CoordinatorLink(std::string address, internal::v1::Hello hello,
                                 std::function<internal::v1::Heartbeat()> heartbeat, Events events)
    : address_(std::move(address)),
      hello_(std::move(hello)),
      heartbeat_(std::move(heartbeat)),
      events_(std::move(events)),
      thread_([this] { Run(); }) {}

CoordinatorLink::~CoordinatorLink() { Stop(); }

void CoordinatorLink::Stop() {
  {
    MutexLock lock(mu_);
    stopping_ = true;
    if (stream_ != nullptr) stream_->Cancel(absl::CancelledError("this worker leaves"));
    changed_.NotifyAll();
  }
  if (thread_.joinable()) thread_.join();
}

void CoordinatorLink::Send(const internal::v1::AssignmentStatus& status) {
  JoinRequest request;
  *request.mutable_assignment() = status;
  MutexLock lock(mu_);
  if (stream_ != nullptr) stream_->Write(std::move(request));
}

void CoordinatorLink::Flush(std::chrono::milliseconds timeout) {
  std::shared_ptr<Stream> stream;
  {
    MutexLock lock(mu_);
    stream = stream_;
  }
  if (stream != nullptr) stream->Flush(timeout);
}

absl::Status CoordinatorLink::RunStream(internal::v1::WorkerControl::Stub* stub, bool* welcomed) {
  auto stream = std::make_shared<Stream>(kMaxQueued);
  {
    MutexLock lock(mu_);
    if (stopping_) return absl::CancelledError("this worker leaves");
    stream_ = stream;
  }
  JoinRequest hello;
  *hello.mutable_hello() = hello_;
  stream->Write(std::move(hello));
  const absl::Status status = stream->Run(
      [stub](grpc::ClientContext* context) { return stub->Join(context); },
      [&](JoinResponse&& message) {
        switch (message.message_case()) {
          case JoinResponse::kWelcome: {
            *welcomed = true;
            const int interval = std::max(message.welcome().heartbeat_interval_ms(), 10);
            spdlog::info("registered with coordinator {} as {}, heartbeat every {} ms", address_,
                         hello_.worker_id(), interval);
            stream->SetPeriodic(std::chrono::milliseconds(interval), [this] {
              JoinRequest beat;
              *beat.mutable_heartbeat() = heartbeat_();
              return beat;
            });
            break;
          }
          case JoinResponse::kAssign:
            events_.assign(message.assign());
            break;
          case JoinResponse::kRelease:
            events_.release(message.release());
            break;
          case JoinResponse::MESSAGE_NOT_SET:
            spdlog::warn("coordinator {} sent a message that this version does not know", address_);
            break;
        }
      });
  MutexLock lock(mu_);
  stream_.reset();
  return status;
}

void CoordinatorLink::Run() {
  grpc::ChannelArguments arguments = InternalChannelArguments();
  arguments.SetInt(GRPC_ARG_USE_LOCAL_SUBCHANNEL_POOL, 1);
  std::minstd_rand random{std::random_device{}()};
  std::chrono::milliseconds backoff = kFirstBackoff;
  CondVar::Clock::time_point next_log = CondVar::Clock::now();
  CondVar::Clock::time_point slower_from = next_log + kSoon;
  std::string last_message;
  while (true) {
    // A channel that has failed tries again no sooner than after 100 ms: a new one for each dial.
    const auto stub = internal::v1::WorkerControl::NewStub(
        grpc::CreateCustomChannel(address_, grpc::InsecureChannelCredentials(), arguments));
    bool welcomed = false;
    const absl::Status status = RunStream(stub.get(), &welcomed);
    {
      MutexLock lock(mu_);
      if (stopping_) return;
    }
    if (welcomed) {
      spdlog::warn("lost coordinator {}: {}; dialling again", address_, status.ToString());
      events_.lost(status);
      backoff = kFirstBackoff;
      slower_from = CondVar::Clock::now() + kSoon;
      last_message.clear();
    } else if (CondVar::Clock::now() >= next_log || status.message() != last_message) {
      spdlog::warn("coordinator {} does not take this worker: {}; trying on", address_, status.ToString());
      next_log = CondVar::Clock::now() + kLogInterval;
      last_message = std::string(status.message());
    }
    // Jitter: the workers of a restarted coordinator do not come all at once.
    const auto wait = std::chrono::milliseconds(
        std::uniform_int_distribution<int64_t>(backoff.count() / 2, backoff.count())(random));
    const CondVar::Clock::time_point until = CondVar::Clock::now() + wait;
    if (CondVar::Clock::now() >= slower_from) backoff = std::min(backoff * 2, kLongestBackoff);
    MutexLock lock(mu_);
    while (!stopping_ && changed_.WaitUntil(mu_, until)) {
    }
    if (stopping_) return;
  }
}

}  // namespace phalanx
