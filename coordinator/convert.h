// Between the wire's messages and the values of the pure cores.
#pragma once

#include <string>

#include "coordinator/cluster_state.h"
#include "coordinator/generation.h"
#include "coordinator/request.h"
#include "phalanx/internal/v1/group_control.pb.h"
#include "phalanx/internal/v1/worker_control.pb.h"
#include "phalanx/v1/cluster.pb.h"
#include "phalanx/v1/inference.pb.h"

namespace phalanx::coordinator {

RequestFields ToFields(const v1::GenerateRequest& request);
SequenceOutput ToOutput(const internal::v1::SequenceOutput& output);
ModelSpec ToSpec(const v1::ModelSpec& spec);
v1::ModelSpec FromSpec(const ModelSpec& spec);
WorkerInfo ToWorkerInfo(const internal::v1::Hello& hello);

internal::v1::Submit MakeSubmit(uint64_t request, const std::vector<int32_t>& prompt, const TokenLog& log);
v1::GenerateResponse MakeStarted(const std::string& request_id, const std::string& model,
                                 int64_t prompt_tokens, const TokenLog& log);
v1::GenerateResponse MakePromptLogprobs(const Told& told);
v1::GenerateResponse MakeChunk(Told* told);  // takes its text
v1::GenerateResponse MakeFinished(const Told& told, const Generation::Usage& usage);

}  // namespace phalanx::coordinator
