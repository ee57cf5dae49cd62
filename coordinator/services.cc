#include "coordinator/services.h"

#include <utility>

#include "absl/strings/str_cat.h"
#include "base/grpc_util.h"
#include "coordinator/control_streams.h"
#include "coordinator/convert.h"
#include "coordinator/generate_call.h"

namespace phalanx::coordinator {

grpc::ServerWriteReactor<v1::GenerateResponse>* InferenceService::Generate(
    grpc::CallbackServerContext* context, const v1::GenerateRequest* request) {
  auto* call = new GenerateCall(coordinator_, context);  // deletes itself
  call->Begin(*request);
  return call;
}

grpc::ServerUnaryReactor* ClusterService::GetStatus(grpc::CallbackServerContext* context,
                                                    const v1::GetStatusRequest*,
                                                    v1::GetStatusResponse* response) {
  grpc::ServerUnaryReactor* reactor = context->DefaultReactor();
  coordinator_->loop()->Post([this, reactor, response] {
    coordinator_->FillStatus(response);
    reactor->Finish(grpc::Status::OK);
  });
  return reactor;
}

grpc::ServerUnaryReactor* ClusterService::LoadModel(grpc::CallbackServerContext* context,
                                                    const v1::LoadModelRequest* request,
                                                    v1::LoadModelResponse* response) {
  grpc::ServerUnaryReactor* reactor = context->DefaultReactor();
  if (coordinator_->draining()) {
    reactor->Finish(grpc::Status(grpc::UNAVAILABLE, "the coordinator is shutting down"));
    return reactor;
  }
  if (!v1::Compute_IsValid(request->spec().compute())) {
    reactor->Finish(grpc::Status(grpc::StatusCode::INVALID_ARGUMENT,
                                 absl::StrCat("spec.compute is ", static_cast<int>(request->spec().compute()),
                                              "; it must be COMPUTE_FAST (1) or COMPUTE_FP32 (2)")));
    return reactor;
  }
  coordinator_->pool()->Post([this, reactor, response, spec = ToSpec(request->spec())]() mutable {
    auto model = OpenModel(std::move(spec));
    coordinator_->loop()->Post([this, reactor, response, model = std::move(model)] {
      absl::Status status = model.status();
      if (status.ok()) status = coordinator_->Load(*model);
      if (status.ok()) *response->mutable_spec() = FromSpec((*model)->spec);
      reactor->Finish(ToGrpc(status));
    });
  });
  return reactor;
}

grpc::ServerUnaryReactor* ClusterService::UnloadModel(grpc::CallbackServerContext* context,
                                                      const v1::UnloadModelRequest* request,
                                                      v1::UnloadModelResponse*) {
  grpc::ServerUnaryReactor* reactor = context->DefaultReactor();
  coordinator_->loop()->Post(
      [this, reactor, name = request->name()] { reactor->Finish(ToGrpc(coordinator_->Unload(name))); });
  return reactor;
}

grpc::ServerBidiReactor<internal::v1::JoinRequest, internal::v1::JoinResponse>* WorkerControlService::Join(
    grpc::CallbackServerContext* context) {
  return new WorkerStream(coordinator_, context);  // deletes itself
}

grpc::ServerBidiReactor<internal::v1::ServeRequest, internal::v1::ServeResponse>* GroupControlService::Serve(
    grpc::CallbackServerContext* context) {
  return new GroupStream(coordinator_, context);  // deletes itself
}

}  // namespace phalanx::coordinator
