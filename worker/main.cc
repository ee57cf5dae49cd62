// phalanx-worker: one process per device. Reads flags, listens for followers, registers with the
// coordinators, and serves what they assign until SIGTERM or SIGINT.

#include <grpc/support/log.h>
#include <grpcpp/ext/proto_server_reflection_plugin.h>
#include <grpcpp/health_check_service_interface.h>
#include <pthread.h>
#include <signal.h>
#include <unistd.h>

#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <string>

#include "absl/strings/str_cat.h"
#include "base/grpc_util.h"
#include "base/http_server.h"
#include "base/logging.h"
#include "base/metrics.h"
#include "base/version.h"
#include "kernels/backends.h"
#include "kernels/ops.h"
#include "worker/agent.h"
#include "worker/config.h"
#include "worker/host_resources.h"
#include "worker/peer_service.h"
#include "worker/rank_loader.h"

namespace phalanx {
namespace {

int Fail(const absl::Status& status) {
  std::fprintf(stderr, "phalanx-worker: %s\n", std::string(status.message()).c_str());
  return 1;
}

// Blocked in every thread (they inherit the mask) and taken by the main one.
sigset_t BlockEndSignals() {
  sigset_t signals;
  sigemptyset(&signals);
  sigaddset(&signals, SIGTERM);
  sigaddset(&signals, SIGINT);
  pthread_sigmask(SIG_BLOCK, &signals, nullptr);
  signal(SIGPIPE, SIG_IGN);
  return signals;
}

// The kernels' name, as operators see it. Also the proof, before registering, that --device and --rung run
// here; `auto` becomes what does.
absl::StatusOr<std::string> ChooseDevice(WorkerConfig& config) {
  OpsOptions options;
  options.gpu = config.gpu;
  options.device_mode = DeviceModeOf(config);
  options.cache_folder = config.cache_folder;
  if (config.device == "auto") {
    options.rung = kCudaRung;
    const absl::Status found = CreateOps(options).status();
    config.device = found.ok() ? "cuda" : "cpu";
    if (!found.ok()) spdlog::info("--device auto: the CPU, as {}", std::string(found.message()));
  }
  options.rung = KernelRung(config);
  absl::StatusOr<std::unique_ptr<Ops>> ops = CreateOps(options);
  if (!ops.ok() && config.device == "cuda") {
    return absl::Status(ops.status().code(), absl::StrCat(std::string(ops.status().message()),
                                                          "; --device cpu and --device auto run without"));
  }
  if (!ops.ok()) return ops.status();
  const OpsInfo& info = (*ops)->info();
  if (config.device == kEmulatedCudaRung) {
    spdlog::warn(
        "--device cuda-emulated is a device for tests: it is thousands of times slower than any other");
  }
  if (info.backend == "reference" && config.rung == "auto") {
    spdlog::warn(
        "this host lacks the instructions of the fast kernels (AVX2, FMA): the reference kernels run, "
        "slowly");
  }
  return absl::StrCat(info.device, ", ", info.instruction_set);
}

// What the worker says over HTTP; `agent` outlives the server.
absl::StatusOr<std::unique_ptr<HttpServer>> ServeMetrics(const WorkerConfig& config, const Agent* agent) {
  auto registry = std::make_shared<metrics::Registry>();
  registry->AddGauge("phalanx_build_info", "1; the version is a label.", {{"version", kVersion}})->Set(1);
  HttpServer::Handlers handlers;
  handlers["/metrics"] = [registry, vitals = &agent->vitals()] {
    metrics::UpdateProcessMetrics(registry.get());
    const auto set = [&](const char* name, const char* help, double value) {
      registry->AddGauge(absl::StrCat("phalanx_worker_", name), help)->Set(value);
    };
    set("last_step_age_seconds", "Since the last completed step of the present group; -1: none yet.",
        vitals->last_step_age_seconds());
    set("running_step_seconds", "That the present step has been running; -1 between steps.",
        vitals->running_step_seconds());
    set("memory_bytes", "Held by weights and KV blocks.", static_cast<double>(vitals->memory_bytes()));
    return HttpReply{200, "text/plain; version=0.0.4; charset=utf-8",
                     registry->Write() + metrics::WriteOne("phalanx_worker_step_seconds", "Time of a step.",
                                                           vitals->step_seconds())};
  };
  handlers["/healthz"] = [vitals = &agent->vitals(), limit = config.stuck_step_seconds] {
    const bool live = vitals->running_step_seconds() < limit;
    return live ? HttpReply{200, "text/plain; charset=utf-8", "ok\n"}
                : HttpReply{503, "text/plain; charset=utf-8", "a step is stuck\n"};
  };
  return HttpServer::Start(config.metrics_listen, std::move(handlers));
}

int Serve(WorkerConfig& config, const sigset_t& signals) {
  const HostResources host = ReadHostResources();
  absl::StatusOr<std::string> device = ChooseDevice(config);
  if (!device.ok()) return Fail(device.status());

  // gRPC's own lines are for debugging; what matters comes back as a status.
  gpr_set_log_function([](gpr_log_func_args* args) { spdlog::debug("grpc: {}", args->message); });
  grpc::EnableDefaultHealthCheckService(true);
  grpc::reflection::InitProtoReflectionServerBuilderPlugin();
  PeerService peers;
  grpc::ServerBuilder builder;
  ConfigureInternalServer(&builder);
  int port = 0;
  builder.AddListeningPort(config.listen, grpc::InsecureServerCredentials(), &port);
  builder.RegisterService(&peers);
  std::unique_ptr<grpc::Server> server = builder.BuildAndStart();
  if (server == nullptr || port == 0) {
    return Fail(absl::UnavailableError(
        absl::StrCat("cannot listen on ", config.listen, ": the address is taken or not this host's")));
  }
  const std::string listening = absl::StrCat(config.listen.substr(0, config.listen.rfind(':')), ":", port);

  internal::v1::Hello hello;
  hello.set_worker_id(config.id);
  hello.set_host(config.host_id);
  hello.set_pid(getpid());
  hello.set_workers_on_host(CountWorkersOnHost());
  hello.set_version(kVersion);
  hello.set_device(absl::StrCat(*device, ", ", host.cpus, host.cpus == 1 ? " CPU" : " CPUs"));
  hello.set_group_address(config.advertise.empty() ? listening : config.advertise);
  hello.set_memory_total_bytes(host.memory_total);
  spdlog::info("phalanx-worker {} {} on {}, listens on {}; {}", kVersion, config.id, hello.device(),
               listening, Describe(config));
  if (!config.ListensOnLoopback()) {
    spdlog::warn("--listen {} is not the loopback address: there is no TLS and no authentication yet",
                 config.listen);
  }

  Agent agent(&config, &peers, hello);
  std::unique_ptr<HttpServer> http;
  if (!config.metrics_listen.empty()) {
    auto started = ServeMetrics(config, &agent);
    if (!started.ok()) return Fail(started.status());
    http = *std::move(started);
    spdlog::info("metrics and health over HTTP on {} (port {})", config.metrics_listen, http->port());
  }
  bool live = true;
  int signal_number = 0;
  while (signal_number <= 0) {
    const timespec second = {1, 0};
    signal_number = sigtimedwait(&signals, nullptr, &second);
    const bool now_live = agent.vitals().running_step_seconds() < config.stuck_step_seconds;
    if (now_live != live) {
      live = now_live;
      server->GetHealthCheckService()->SetServingStatus(live);
      if (live) {
        spdlog::info("the stuck step ended: serving again");
      } else {
        spdlog::error("a step has been running for more than {} s: not serving", config.stuck_step_seconds);
      }
    }
  }
  spdlog::info("{}: leaving", signal_number == SIGTERM ? "SIGTERM" : "SIGINT");
  if (!agent.Stop()) {
    spdlog::warn("the group's threads did not end within {} ms: ending without them", config.exit_timeout_ms);
    std::_Exit(0);
  }
  server->Shutdown(std::chrono::system_clock::now() + std::chrono::milliseconds(config.exit_timeout_ms));
  return 0;
}

int Main(int argc, char** argv) {
  const sigset_t signals = BlockEndSignals();
  WorkerConfig config;
  if (const ParsedFlags flags = ParseFlags(argc, argv, &config); flags.exit) {
    std::fputs(flags.output.c_str(), flags.exit_code == 0 ? stdout : stderr);
    return flags.exit_code;
  }
  if (absl::Status s = InitLogging("worker", config.log_level); !s.ok()) return Fail(s);
  return Serve(config, signals);
}

}  // namespace
}  // namespace phalanx

int main(int argc, char** argv) { return phalanx::Main(argc, argv); }
