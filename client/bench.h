// `phalanx bench`: a load test of a cluster.
#pragma once

#include <memory>

#include "absl/status/status.h"
#include "client/config.h"
#include "grpcpp/channel.h"

namespace phalanx {

// Prints a table, and writes the reports that are asked for. Ctrl-C ends the load early; what there is by
// then is reported. An error when no request finished.
absl::Status RunBench(const ClientConfig& config, const std::shared_ptr<grpc::Channel>& channel);

}  // namespace phalanx
