// The coordinator as a whole: services, health, reflection, the way down.
#pragma once

#include <grpcpp/grpcpp.h>

#include <chrono>
#include <memory>

#include "absl/status/statusor.h"
#include "base/http_server.h"
#include "coordinator/config.h"
#include "coordinator/coordinator.h"
#include "coordinator/open_model.h"
#include "coordinator/services.h"

namespace phalanx::coordinator {

class Server {
 public:
  // Opens config.model if named, and listens as soon as its headers are read: clients' calls wait for the
  // rest. Errors are for the user: file, port.
  static absl::StatusOr<std::unique_ptr<Server>> Start(const Config& config);
  // Stops at once.
  ~Server();

  int port() const { return port_; }
  // 0: there is no --metrics-listen.
  int metrics_port() const { return http_ == nullptr ? 0 : http_->port(); }
  Coordinator& coordinator() { return coordinator_; }

  // To be called about once a second: tells the health service how things are.
  void UpdateHealth();
  // Refuses new requests, waits up to `grace` for those in flight, ends all streams. Returns the number of
  // requests that had to be cut off.
  int64_t Drain(std::chrono::milliseconds grace);

 private:
  explicit Server(const Config& config);
  absl::Status StartHttp(const std::string& listen);
  absl::Status Load(ModelOpening opening);

  Coordinator coordinator_;
  InferenceService inference_;
  ClusterService cluster_;
  WorkerControlService worker_control_;
  GroupControlService group_control_;
  std::unique_ptr<grpc::Server> server_;
  int port_ = 0;
  std::unique_ptr<HttpServer> http_;  // last: it uses all the others
};

}  // namespace phalanx::coordinator
