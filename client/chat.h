// `phalanx chat`: streams answers, keeps the history.
#pragma once

#include <grpcpp/grpcpp.h>

#include <memory>

#include "absl/status/status.h"
#include "client/config.h"

namespace phalanx {

// One-shot with config.prompt; else every line of stdin is a question until its end. Ctrl-C cancels the
// answer that is streaming (the history keeps what came); where none streams it ends the program.
absl::Status RunChat(const ClientConfig& config, const std::shared_ptr<grpc::Channel>& channel);

}  // namespace phalanx
