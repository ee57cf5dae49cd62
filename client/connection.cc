#include "client/connection.h"

#include "absl/strings/str_cat.h"

namespace phalanx {
namespace {
constexpr int kMaxReceiveBytes = 64 << 20;
}

absl::StatusOr<std::shared_ptr<grpc::Channel>> Connect(const ClientConfig& config) {
  grpc::ChannelArguments args;
  args.SetInt(GRPC_ARG_KEEPALIVE_TIME_MS, 10000);
  args.SetInt(GRPC_ARG_KEEPALIVE_TIMEOUT_MS, 5000);
  args.SetInt(GRPC_ARG_HTTP2_MAX_PINGS_WITHOUT_DATA, 0);
  args.SetMaxReceiveMessageSize(kMaxReceiveBytes);
  auto channel = grpc::CreateCustomChannel(config.server, grpc::InsecureChannelCredentials(), args);
  if (!channel->WaitForConnected(DeadlineIn(config.connect_timeout_seconds))) {
    return absl::UnavailableError(absl::StrCat("no coordinator answers at ", config.server, " within ",
                                               config.connect_timeout_seconds,
                                               " s; start one, or name another with --server HOST:PORT"));
  }
  return channel;
}

absl::Status FromGrpc(const grpc::Status& status) {
  return absl::Status(static_cast<absl::StatusCode>(status.error_code()), status.error_message());
}

}  // namespace phalanx
