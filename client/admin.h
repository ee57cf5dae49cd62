// `phalanx status`, `load` and `unload`.
#pragma once

#include <grpcpp/grpcpp.h>

#include <memory>

#include "absl/status/status.h"
#include "client/config.h"

namespace phalanx {

absl::Status RunStatus(const ClientConfig& config, const std::shared_ptr<grpc::Channel>& channel);
// Waits until all groups are ready, at most wait_seconds; DeadlineExceeded then says what each is waiting
// for.
absl::Status RunLoad(const ClientConfig& config, const std::shared_ptr<grpc::Channel>& channel);
absl::Status RunUnload(const ClientConfig& config, const std::shared_ptr<grpc::Channel>& channel);

}  // namespace phalanx
