// The coordinator's four gRPC services. Each method hands over to the loop or a pool at once.
#pragma once

#include <functional>
#include <string>

#include "coordinator/coordinator.h"
#include "phalanx/internal/v1/group_control.grpc.pb.h"
#include "phalanx/internal/v1/worker_control.grpc.pb.h"
#include "phalanx/v1/cluster.grpc.pb.h"
#include "phalanx/v1/inference.grpc.pb.h"

namespace phalanx::coordinator {

// Generate and Tokenize take bytes: a request that cannot be parsed is answered with what is wrong with it,
// where gRPC would call the method unimplemented.
using InferenceCalls =
    v1::Inference::WithRawCallbackMethod_Generate<v1::Inference::WithRawCallbackMethod_Tokenize<
        v1::Inference::WithCallbackMethod_Detokenize<v1::Inference::WithCallbackMethod_ListModels<
            v1::Inference::WithCallbackMethod_GetModel<v1::Inference::Service>>>>>;
class InferenceService : public InferenceCalls {
 public:
  explicit InferenceService(Coordinator* coordinator) : coordinator_(coordinator) {}
  grpc::ServerWriteReactor<grpc::ByteBuffer>* Generate(grpc::CallbackServerContext* context,
                                                       const grpc::ByteBuffer* request) override;
  grpc::ServerUnaryReactor* Tokenize(grpc::CallbackServerContext* context, const grpc::ByteBuffer* bytes,
                                     grpc::ByteBuffer* response) override;
  grpc::ServerUnaryReactor* Detokenize(grpc::CallbackServerContext* context,
                                       const v1::DetokenizeRequest* request,
                                       v1::DetokenizeResponse* response) override;
  grpc::ServerUnaryReactor* ListModels(grpc::CallbackServerContext* context,
                                       const v1::ListModelsRequest* request,
                                       v1::ListModelsResponse* response) override;
  grpc::ServerUnaryReactor* GetModel(grpc::CallbackServerContext* context, const v1::GetModelRequest* request,
                                     v1::GetModelResponse* response) override;

 private:
  // Runs `work`, which takes a loaded model to a status, on the pool; the reactor gets its status.
  grpc::ServerUnaryReactor* WithModel(grpc::CallbackServerContext* context, const std::string& model,
                                      std::function<absl::Status(const LoadedModel&)> work);

  Coordinator* const coordinator_;
};

class ClusterService : public v1::Cluster::CallbackService {
 public:
  explicit ClusterService(Coordinator* coordinator) : coordinator_(coordinator) {}
  grpc::ServerUnaryReactor* GetStatus(grpc::CallbackServerContext* context,
                                      const v1::GetStatusRequest* request,
                                      v1::GetStatusResponse* response) override;
  grpc::ServerUnaryReactor* LoadModel(grpc::CallbackServerContext* context,
                                      const v1::LoadModelRequest* request,
                                      v1::LoadModelResponse* response) override;
  grpc::ServerUnaryReactor* UnloadModel(grpc::CallbackServerContext* context,
                                        const v1::UnloadModelRequest* request,
                                        v1::UnloadModelResponse* response) override;

 private:
  Coordinator* const coordinator_;
};

class WorkerControlService : public internal::v1::WorkerControl::CallbackService {
 public:
  explicit WorkerControlService(Coordinator* coordinator) : coordinator_(coordinator) {}
  grpc::ServerBidiReactor<internal::v1::JoinRequest, internal::v1::JoinResponse>* Join(
      grpc::CallbackServerContext* context) override;

 private:
  Coordinator* const coordinator_;
};

class GroupControlService : public internal::v1::GroupControl::CallbackService {
 public:
  explicit GroupControlService(Coordinator* coordinator) : coordinator_(coordinator) {}
  grpc::ServerBidiReactor<internal::v1::ServeRequest, internal::v1::ServeResponse>* Serve(
      grpc::CallbackServerContext* context) override;

 private:
  Coordinator* const coordinator_;
};

}  // namespace phalanx::coordinator
