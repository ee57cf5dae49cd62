#include <chrono>
#include <csignal>
#include <cstdio>
#include <memory>

#include "base/file_limit.h"
#include "base/logging.h"
#include "base/version.h"
#include "coordinator/config.h"
#include "coordinator/server.h"

namespace {

// Ends the program with one line, in the form of ParseFlags.
int Fail(const absl::Status& status) {
  std::fprintf(stderr, "phalanx-coordinator: %s\n", std::string(status.message()).c_str());
  return 1;
}

}  // namespace

int main(int argc, char** argv) {
  phalanx::RaiseFileLimit();
  using phalanx::coordinator::Config;
  using phalanx::coordinator::Server;
  Config config;
  const phalanx::coordinator::ParsedFlags flags = phalanx::coordinator::ParseFlags(argc, argv, &config);
  if (flags.exit) {
    std::fputs(flags.output.c_str(), flags.exit_code == 0 ? stdout : stderr);
    return flags.exit_code;
  }
  if (const absl::Status status = phalanx::InitLogging("coordinator", config.log_level); !status.ok()) {
    return Fail(status);
  }
  // Blocked in every thread; the main thread takes them in sigtimedwait.
  sigset_t signals;
  sigemptyset(&signals);
  sigaddset(&signals, SIGTERM);
  sigaddset(&signals, SIGINT);
  pthread_sigmask(SIG_BLOCK, &signals, nullptr);

  auto server = Server::Start(config);
  if (!server.ok()) return Fail(server.status());
  if (!config.ListensOnLoopback()) {
    spdlog::warn(
        "--listen {} is not the loopback address: anyone who reaches it can use and command the cluster, "
        "there is no TLS and no authentication yet",
        config.listen);
  }
  spdlog::info(
      "phalanx-coordinator {} listens on {} (port {}); max-in-flight {}, max-tokens-default {}, "
      "heartbeat {} s / {} s",
      phalanx::kVersion, config.listen, (*server)->port(), config.max_in_flight, config.max_tokens_default,
      config.heartbeat_interval_s, config.heartbeat_timeout_s);
  if ((*server)->metrics_port() != 0) {
    spdlog::info("metrics and health over HTTP on {} (port {})", config.metrics_listen,
                 (*server)->metrics_port());
  }
  int signal = -1;
  while (signal < 0) {
    const timespec wait{.tv_sec = 1, .tv_nsec = 0};
    signal = sigtimedwait(&signals, nullptr, &wait);
    (*server)->UpdateHealth();
  }
  spdlog::info("{}: draining for up to {} s", signal == SIGINT ? "SIGINT" : "SIGTERM", config.drain_grace_s);
  // A second signal ends the process at once.
  pthread_sigmask(SIG_UNBLOCK, &signals, nullptr);
  const int64_t cut =
      (*server)->Drain(std::chrono::milliseconds(static_cast<int64_t>(config.drain_grace_s * 1e3)));
  spdlog::info("drained, {} requests cut off", cut);
  return 0;
}
