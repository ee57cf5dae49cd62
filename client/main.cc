// phalanx: the client command.

#include <cstdio>
#include <optional>
#include <string>

#include "client/admin.h"
#include "client/bench.h"
#include "client/chat.h"
#include "client/config.h"
#include "client/connection.h"
#include "client/inspect.h"
#include "client/pull.h"

namespace {

absl::Status Run(const phalanx::ClientConfig& config) {
  if (config.command == phalanx::Command::kInspect) return phalanx::RunInspect(config);
  if (config.command == phalanx::Command::kPull) return phalanx::RunPull(config);
  auto channel = phalanx::Connect(config);
  if (!channel.ok()) return channel.status();
  switch (config.command) {
    case phalanx::Command::kChat:
      return phalanx::RunChat(config, *channel);
    case phalanx::Command::kStatus:
      return phalanx::RunStatus(config, *channel);
    case phalanx::Command::kLoad:
      return phalanx::RunLoad(config, *channel);
    case phalanx::Command::kUnload:
      return phalanx::RunUnload(config, *channel);
    case phalanx::Command::kBench:
      return phalanx::RunBench(config, *channel);
    case phalanx::Command::kInspect:
    case phalanx::Command::kPull:
      break;
  }
  return absl::InternalError("unknown command");
}

}  // namespace

int main(int argc, char** argv) {
  std::optional<int> exit_code;
  auto config = phalanx::ParseClientFlags(argc, argv, &exit_code);
  if (exit_code) return *exit_code;
  const absl::Status status = config.ok() ? Run(*config) : config.status();
  if (status.ok()) return 0;
  std::fprintf(stderr, "phalanx: %s: %s\n", absl::StatusCodeToString(status.code()).c_str(),
               std::string(status.message()).c_str());
  return absl::IsCancelled(status) ? 130 : 1;
}
