#include "coordinator/server.h"

#include <grpc/support/log.h>
#include <grpcpp/ext/proto_server_reflection_plugin.h>
#include <grpcpp/health_check_service_interface.h>

#include <optional>
#include <thread>
#include <utility>

#include "absl/strings/str_cat.h"
#include "base/grpc_util.h"
#include "base/logging.h"
#include "base/status_macros.h"
#include "coordinator/wire.h"

namespace phalanx::coordinator {
namespace {

constexpr int kMaxReceiveBytes = 32 << 20;
constexpr int kMaxMetadataBytes = 16 << 10;
// A loop that has not come round for this long hangs.
constexpr std::chrono::seconds kLoopTimeout{10};
constexpr std::chrono::seconds kCloseTimeout{2};
constexpr char kText[] = "text/plain; charset=utf-8";

}  // namespace

Server::Server(const Config& config)
    : coordinator_(config),
      inference_(&coordinator_),
      cluster_(&coordinator_),
      worker_control_(&coordinator_),
      group_control_(&coordinator_) {}

absl::StatusOr<std::unique_ptr<Server>> Server::Start(const Config& config) {
  // gRPC's own lines are for debugging; what matters comes back as a status.
  gpr_set_log_function([](gpr_log_func_args* args) { spdlog::debug("grpc: {}", args->message); });
  LogProtobuf();
  std::optional<ModelOpening> opening;
  if (!config.model.path.empty()) {
    PHX_ASSIGN_OR_RETURN(opening, ModelOpening::Begin(config.model));
  }
  std::unique_ptr<Server> server(new Server(config));
  Coordinator& coordinator = server->coordinator_;
  if (opening) coordinator.BeginOpening();
  grpc::EnableDefaultHealthCheckService(true);
  grpc::reflection::InitProtoReflectionServerBuilderPlugin();
  grpc::ServerBuilder builder;
  // Workers that stop are noticed by their heartbeats.
  ConfigureInternalServer(&builder, kClientPings);
  builder.SetMaxReceiveMessageSize(kMaxReceiveBytes);
  builder.AddChannelArgument(GRPC_ARG_MAX_METADATA_SIZE, kMaxMetadataBytes);
  builder.AddListeningPort(config.listen, grpc::InsecureServerCredentials(), &server->port_);
  builder.RegisterService(&server->inference_);
  builder.RegisterService(&server->cluster_);
  builder.RegisterService(&server->worker_control_);
  builder.RegisterService(&server->group_control_);
  server->server_ = builder.BuildAndStart();
  if (server->server_ == nullptr || server->port_ == 0) {
    return absl::UnavailableError(absl::StrCat("cannot listen on ", config.listen,
                                               ": the port is taken or the address is not this machine's"));
  }
  server->UpdateHealth();
  absl::Status status;
  if (!config.metrics_listen.empty()) status = server->StartHttp(config.metrics_listen);
  if (status.ok() && opening) status = server->Load(*std::move(opening));
  if (!status.ok()) {
    coordinator.EndOpening();  // the server's end waits for calls that wait
    return status;
  }
  server->UpdateHealth();
  return server;
}

absl::Status Server::Load(ModelOpening opening) {
  const auto check = [](const std::string& name, const absl::Status& status) {
    // Fails only for a second model of the name.
    if (!status.ok()) spdlog::error("model '{}': {}", name, status.ToString());
  };
  // Workers load the weights while the tokenizer is made.
  coordinator_.loop()->Post(
      [this, check, spec = opening.spec()] { check(spec.name, coordinator_.Announce(spec)); });
  PHX_ASSIGN_OR_RETURN(std::shared_ptr<const LoadedModel> model, std::move(opening).Finish());
  coordinator_.loop()->Post([this, check, model = std::move(model)] {
    check(model->spec.name, coordinator_.Load(model));
    coordinator_.EndOpening();
  });
  return absl::OkStatus();
}

absl::Status Server::StartHttp(const std::string& listen) {
  const auto say = [](bool good, const char* bad) {
    return good ? HttpReply{200, kText, "ok\n"} : HttpReply{503, kText, absl::StrCat(bad, "\n")};
  };
  HttpServer::Handlers handlers;
  handlers["/metrics"] = [this] {
    metrics::Registry& registry = coordinator_.metrics().registry();
    metrics::UpdateProcessMetrics(&registry);
    return HttpReply{200, "text/plain; version=0.0.4; charset=utf-8", registry.Write()};
  };
  handlers["/healthz"] = [this, say] {
    return say(coordinator_.loop()->age() < kLoopTimeout, "the coordinator's loop hangs");
  };
  handlers["/readyz"] = [this, say] {
    const bool alive = coordinator_.loop()->age() < kLoopTimeout;
    return say(alive && coordinator_.ready(),
               coordinator_.draining() ? "the coordinator is shutting down" : "no group is ready");
  };
  PHX_ASSIGN_OR_RETURN(http_, HttpServer::Start(listen, std::move(handlers)));
  return absl::OkStatus();
}

Server::~Server() {
  if (server_ != nullptr) Drain(std::chrono::milliseconds(0));
}

void Server::UpdateHealth() {
  grpc::HealthCheckServiceInterface* health = server_->GetHealthCheckService();
  if (health == nullptr) return;
  const bool alive = coordinator_.loop()->age() < kLoopTimeout;
  const bool takes_requests = alive && coordinator_.ready();
  health->SetServingStatus("", alive && !coordinator_.draining());
  health->SetServingStatus("liveness", alive);
  health->SetServingStatus("readiness", takes_requests);
  health->SetServingStatus(v1::Inference::service_full_name(), takes_requests);
  health->SetServingStatus(v1::Cluster::service_full_name(), alive && !coordinator_.draining());
}

int64_t Server::Drain(std::chrono::milliseconds grace) {
  coordinator_.BeginDrain();
  UpdateHealth();
  const auto deadline = std::chrono::steady_clock::now() + grace;
  while (coordinator_.in_flight().count() > 0 && std::chrono::steady_clock::now() < deadline) {
    std::this_thread::sleep_for(std::chrono::milliseconds(20));
  }
  const int64_t cut = coordinator_.in_flight().count();
  coordinator_.loop()->Post([this] { coordinator_.CloseAll("the coordinator is shutting down"); });
  server_->Shutdown(std::chrono::system_clock::now() + kCloseTimeout);
  server_.reset();
  return cut;
}

}  // namespace phalanx::coordinator
