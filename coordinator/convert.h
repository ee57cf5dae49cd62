// Between the wire's messages and the values of the pure cores.
#pragma once

#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "coordinator/admission.h"
#include "coordinator/cluster_state.h"
#include "coordinator/generation.h"
#include "coordinator/request.h"
#include "phalanx/internal/v1/group_control.pb.h"
#include "phalanx/internal/v1/worker_control.pb.h"
#include "phalanx/v1/cluster.pb.h"
#include "phalanx/v1/inference.pb.h"

namespace phalanx::coordinator {

RequestSizes SizesOf(const v1::GenerateRequest& request);
RequestSizes SizesOf(const v1::TokenizeRequest& request);
// InvalidArgument for a value that no message can mean (an unknown enum).
absl::StatusOr<RequestFields> ToFields(const v1::GenerateRequest& request);
// Fills `chat` and `chat_options`.
absl::Status ToChat(const v1::Chat& chat, RequestFields* out);
SequenceOutput ToOutput(const internal::v1::SequenceOutput& output);
ModelSpec ToSpec(const v1::ModelSpec& spec);
v1::ModelSpec FromSpec(const ModelSpec& spec);
WorkerInfo ToWorkerInfo(const internal::v1::Hello& hello);

// `opened`: the family whose reasoning the prompt left open, or null. `close_marks`: of the model's
// tokenizer.
internal::v1::Submit MakeSubmit(uint64_t request, const std::string& request_id,
                                const std::vector<int32_t>& prompt, const TokenLog& log,
                                const ReasoningFamily* opened, const std::vector<CloseMark>& close_marks);
v1::GenerateResponse MakeStarted(const std::string& request_id, const std::string& model,
                                 int64_t prompt_tokens, const TokenLog& log);
v1::GenerateResponse MakePromptLogprobs(const Told& told);
v1::GenerateResponse MakeChunk(uint32_t choice, Told* told);  // takes its text
v1::GenerateResponse MakeFinished(uint32_t choice, const Told& told, const Generation::Usage& usage);

}  // namespace phalanx::coordinator
