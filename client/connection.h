// One channel to the coordinator, and what a gRPC error looks like to a person.
#pragma once

#include <grpcpp/grpcpp.h>

#include <chrono>
#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "client/config.h"

namespace phalanx {

// Unavailable naming the address when nothing answers within connect_timeout_seconds.
// Channels to one address share a connection unless they ask for their own.
absl::StatusOr<std::shared_ptr<grpc::Channel>> Connect(const ClientConfig& config,
                                                       bool own_connection = false);

// A gRPC status as absl::Status, same code and message.
absl::Status FromGrpc(const grpc::Status& status);

inline std::chrono::system_clock::time_point DeadlineIn(double seconds) {
  return std::chrono::system_clock::now() + std::chrono::duration_cast<std::chrono::system_clock::duration>(
                                                std::chrono::duration<double>(seconds));
}

}  // namespace phalanx
