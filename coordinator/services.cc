#include "coordinator/services.h"

#include <memory>
#include <utility>

#include "absl/strings/str_cat.h"
#include "base/grpc_util.h"
#include "coordinator/control_streams.h"
#include "coordinator/convert.h"
#include "coordinator/generate_call.h"
#include "coordinator/model_service.h"
#include "coordinator/open_model.h"
#include "coordinator/wire.h"

namespace phalanx::coordinator {

grpc::ServerWriteReactor<grpc::ByteBuffer>* InferenceService::Generate(grpc::CallbackServerContext* context,
                                                                       const grpc::ByteBuffer* request) {
  auto* call = new GenerateCall(coordinator_, context);  // deletes itself
  call->Begin(*request);
  return call;
}

grpc::ServerUnaryReactor* InferenceService::WithModel(grpc::CallbackServerContext* context,
                                                      const std::string& model,
                                                      std::function<absl::Status(const LoadedModel&)> work) {
  grpc::ServerUnaryReactor* reactor = context->DefaultReactor();
  const auto refuse = [reactor](const absl::Status& status) {
    reactor->Finish(ToGrpc(status));
    return reactor;
  };
  if (coordinator_->draining()) return refuse(absl::UnavailableError("the coordinator is shutting down"));
  if (const absl::Status opened = coordinator_->AwaitModels(); !opened.ok()) return refuse(opened);
  auto found = coordinator_->registry().Find(model);
  if (!found.ok()) return refuse(found.status());
  if (const absl::Status entered = coordinator_->in_flight().Enter(); !entered.ok()) return refuse(entered);
  coordinator_->bulk_pool()->Post([this, reactor, found = *std::move(found), work = std::move(work)] {
    const absl::Status status = work(*found);
    coordinator_->in_flight().Leave();
    reactor->Finish(ToGrpc(status));
  });
  return reactor;
}

grpc::ServerUnaryReactor* InferenceService::Tokenize(grpc::CallbackServerContext* context,
                                                     const grpc::ByteBuffer* bytes,
                                                     grpc::ByteBuffer* response) {
  const auto request = std::make_shared<v1::TokenizeRequest>();
  if (const absl::Status parsed = Parse(*bytes, request.get()); !parsed.ok()) {
    grpc::ServerUnaryReactor* reactor = context->DefaultReactor();
    reactor->Finish(ToGrpc(parsed));
    return reactor;
  }
  return WithModel(context, request->model(), [request, response](const LoadedModel& model) {
    v1::TokenizeResponse tokens;
    const absl::Status status = TokenizePrompt(model, *request, &tokens);
    *response = Serialize(tokens);
    return status;
  });
}

grpc::ServerUnaryReactor* InferenceService::Detokenize(grpc::CallbackServerContext* context,
                                                       const v1::DetokenizeRequest* request,
                                                       v1::DetokenizeResponse* response) {
  return WithModel(context, request->model(), [request, response](const LoadedModel& model) {
    return DetokenizeIds(model, *request, response);
  });
}

grpc::ServerUnaryReactor* InferenceService::ListModels(grpc::CallbackServerContext* context,
                                                       const v1::ListModelsRequest*,
                                                       v1::ListModelsResponse* response) {
  grpc::ServerUnaryReactor* reactor = context->DefaultReactor();
  if (const absl::Status opened = coordinator_->AwaitModels(); !opened.ok()) {
    reactor->Finish(ToGrpc(opened));
    return reactor;
  }
  coordinator_->loop()->Post([this, reactor, response] {
    for (const auto& model : coordinator_->registry().All()) {
      coordinator_->FillModel(*model, response->add_models());
    }
    reactor->Finish(grpc::Status::OK);
  });
  return reactor;
}

grpc::ServerUnaryReactor* InferenceService::GetModel(grpc::CallbackServerContext* context,
                                                     const v1::GetModelRequest* request,
                                                     v1::GetModelResponse* response) {
  grpc::ServerUnaryReactor* reactor = context->DefaultReactor();
  if (const absl::Status opened = coordinator_->AwaitModels(); !opened.ok()) {
    reactor->Finish(ToGrpc(opened));
    return reactor;
  }
  coordinator_->loop()->Post([this, reactor, request, response] {
    const auto model = coordinator_->registry().Find(request->model());
    if (model.ok()) {
      coordinator_->FillModel(**model, response->mutable_model());
      response->mutable_model()->set_chat_template((*model)->limits.chat_template);
    }
    reactor->Finish(ToGrpc(model.status()));
  });
  return reactor;
}

grpc::ServerUnaryReactor* ClusterService::GetStatus(grpc::CallbackServerContext* context,
                                                    const v1::GetStatusRequest*,
                                                    v1::GetStatusResponse* response) {
  grpc::ServerUnaryReactor* reactor = context->DefaultReactor();
  if (const absl::Status opened = coordinator_->AwaitModels(); !opened.ok()) {
    reactor->Finish(ToGrpc(opened));
    return reactor;
  }
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
  if (const absl::Status opened = coordinator_->AwaitModels(); !opened.ok()) {
    reactor->Finish(ToGrpc(opened));
    return reactor;
  }
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
  if (!v1::Rope_IsValid(request->spec().rope())) {
    reactor->Finish(grpc::Status(grpc::StatusCode::INVALID_ARGUMENT,
                                 absl::StrCat("spec.rope is ", static_cast<int>(request->spec().rope()),
                                              "; it must be ROPE_LONG (1) or ROPE_AUTO (2)")));
    return reactor;
  }
  if (!v1::KvCacheDtype_IsValid(request->spec().kv_cache_dtype())) {
    reactor->Finish(grpc::Status(
        grpc::StatusCode::INVALID_ARGUMENT,
        absl::StrCat("spec.kv_cache_dtype is ", static_cast<int>(request->spec().kv_cache_dtype()),
                     "; it must be KV_CACHE_DTYPE_BF16 (1), KV_CACHE_DTYPE_FP32 (2), "
                     "KV_CACHE_DTYPE_INT8 (3) or KV_CACHE_DTYPE_FP8 (4)")));
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
  if (const absl::Status opened = coordinator_->AwaitModels(); !opened.ok()) {
    reactor->Finish(ToGrpc(opened));
    return reactor;
  }
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
