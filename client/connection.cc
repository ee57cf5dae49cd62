#include "client/connection.h"

#include <algorithm>
#include <chrono>
#include <thread>

#include "absl/strings/str_cat.h"

namespace phalanx {
namespace {

constexpr int kMaxReceiveBytes = 64 << 20;
constexpr std::chrono::milliseconds kFirstBackoff{20};
constexpr std::chrono::milliseconds kLongestBackoff{1000};

// Whether the channel connects before it fails or `deadline` comes.
bool Connects(grpc::Channel* channel, std::chrono::system_clock::time_point deadline) {
  for (auto state = channel->GetState(/*try_to_connect=*/true); state != GRPC_CHANNEL_READY;
       state = channel->GetState(true)) {
    if (state == GRPC_CHANNEL_TRANSIENT_FAILURE || !channel->WaitForStateChange(state, deadline))
      return false;
  }
  return true;
}

}  // namespace

absl::StatusOr<std::shared_ptr<grpc::Channel>> Connect(const ClientConfig& config, bool own_connection) {
  grpc::ChannelArguments args;
  args.SetInt(GRPC_ARG_KEEPALIVE_TIME_MS, 10000);
  args.SetInt(GRPC_ARG_KEEPALIVE_TIMEOUT_MS, 5000);
  args.SetInt(GRPC_ARG_HTTP2_MAX_PINGS_WITHOUT_DATA, 0);
  args.SetInt(GRPC_ARG_USE_LOCAL_SUBCHANNEL_POOL, 1);
  args.SetMaxReceiveMessageSize(kMaxReceiveBytes);
  // A channel that has failed waits 100 ms and more: a new one each time finds a coordinator that is just
  // starting as soon as it listens.
  const auto deadline = DeadlineIn(config.connect_timeout_seconds);
  for (auto backoff = kFirstBackoff;; backoff = std::min(backoff * 2, kLongestBackoff)) {
    if (own_connection) args.SetInt(GRPC_ARG_USE_LOCAL_SUBCHANNEL_POOL, 1);
    auto channel = grpc::CreateCustomChannel(config.server, grpc::InsecureChannelCredentials(), args);
    if (Connects(channel.get(), deadline)) return channel;
    if (std::chrono::system_clock::now() + backoff >= deadline) break;
    std::this_thread::sleep_for(backoff);
  }
  return absl::UnavailableError(absl::StrCat("no coordinator answers at ", config.server, " within ",
                                             config.connect_timeout_seconds,
                                             " s; start one, or name another with --server HOST:PORT"));
}

absl::Status FromGrpc(const grpc::Status& status) {
  return absl::Status(static_cast<absl::StatusCode>(status.error_code()), status.error_message());
}

}  // namespace phalanx
