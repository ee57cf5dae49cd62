// gRPC at the edge of the program: the one conversion between its status and absl::Status, and the settings
// of channels and servers between coordinators and workers. Header only, so that base/ itself links no gRPC.
#pragma once

#include <grpcpp/grpcpp.h>

#include <memory>
#include <string>

#include "absl/status/status.h"

namespace phalanx {

// The codes are the same numbers by design of both libraries.
inline absl::Status FromGrpc(const grpc::Status& status) {
  if (status.ok()) return absl::OkStatus();
  return absl::Status(static_cast<absl::StatusCode>(status.error_code()), status.error_message());
}
inline grpc::Status ToGrpc(const absl::Status& status) {
  if (status.ok()) return grpc::Status::OK;
  return grpc::Status(static_cast<grpc::StatusCode>(status.code()), std::string(status.message()));
}

// Pings that notice a peer that is stopped or cut off: a connection without an answer is closed after both
// times. A client gets more patience than a process of the cluster: the ping waits behind all that its
// streams were sent, for which its machine may be slow.
struct Pings {
  int interval_ms;
  int timeout_ms;
};
inline constexpr Pings kInternalPings{2000, 1000};
inline constexpr Pings kClientPings{10000, 20000};
// The fastest pings a server takes; gRPC's default (5 minutes) makes it close connections that ping as above.
inline constexpr int kMinReceivedPingIntervalMs = 500;
// A prompt of a million tokens fits many times.
inline constexpr int kMaxInternalMessageBytes = 64 << 20;

// For channels between coordinators and workers.
inline grpc::ChannelArguments InternalChannelArguments() {
  grpc::ChannelArguments args;
  args.SetInt(GRPC_ARG_KEEPALIVE_TIME_MS, kInternalPings.interval_ms);
  args.SetInt(GRPC_ARG_KEEPALIVE_TIMEOUT_MS, kInternalPings.timeout_ms);
  args.SetInt(GRPC_ARG_KEEPALIVE_PERMIT_WITHOUT_CALLS, 1);
  args.SetInt(GRPC_ARG_HTTP2_MAX_PINGS_WITHOUT_DATA, 0);
  args.SetInt(GRPC_ARG_INITIAL_RECONNECT_BACKOFF_MS, 100);
  args.SetInt(GRPC_ARG_MIN_RECONNECT_BACKOFF_MS, 1000);  // also the time a connection attempt gets
  args.SetInt(GRPC_ARG_MAX_RECONNECT_BACKOFF_MS, 2000);
  args.SetInt(GRPC_ARG_ENABLE_HTTP_PROXY, 0);
  args.SetMaxReceiveMessageSize(kMaxInternalMessageBytes);
  args.SetMaxSendMessageSize(kMaxInternalMessageBytes);
  return args;
}

// For servers that take such channels: allows the pings, and pings the other way while a call is open, so
// that a server notices a stopped client too. gRPC knows one pace for all connections of a server: one that
// also takes strangers has theirs. It does not ping idle clients: gRPC's client libraries do not look at an
// idle connection for seconds, would answer too late, and find it closed at their next call.
inline void ConfigureInternalServer(grpc::ServerBuilder* builder, const Pings& pings = kInternalPings) {
  builder->AddChannelArgument(GRPC_ARG_KEEPALIVE_TIME_MS, pings.interval_ms);
  builder->AddChannelArgument(GRPC_ARG_KEEPALIVE_TIMEOUT_MS, pings.timeout_ms);
  builder->AddChannelArgument(GRPC_ARG_HTTP2_MAX_PINGS_WITHOUT_DATA, 0);
  builder->AddChannelArgument(GRPC_ARG_HTTP2_MIN_RECV_PING_INTERVAL_WITHOUT_DATA_MS,
                              kMinReceivedPingIntervalMs);
  builder->AddChannelArgument(GRPC_ARG_HTTP2_MAX_PING_STRIKES, 0);
  // Two servers on one port would split the connections between them silently.
  builder->AddChannelArgument(GRPC_ARG_ALLOW_REUSEPORT, 0);
  builder->SetMaxReceiveMessageSize(kMaxInternalMessageBytes);
}

}  // namespace phalanx
