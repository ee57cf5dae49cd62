// The models that are served, as far as the coordinator needs them: limits, tokenizer, chat template.
#pragma once

#include <map>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "base/model_config.h"
#include "base/mutex.h"
#include "coordinator/admission.h"
#include "coordinator/cluster_state.h"
#include "coordinator/generation.h"
#include "coordinator/prompt.h"
#include "coordinator/text/chat_template.h"
#include "coordinator/text/tokenizer.h"

namespace phalanx::coordinator {

// Thread safety: immutable once made.
struct LoadedModel {
  ModelSpec spec;  // complete
  ModelConfig config;
  ModelLimits limits;
  int64_t num_parameters = 0;
  std::unique_ptr<Tokenizer> tokenizer;       // null: the file has none that we can use
  ControlNames control_names;                 // of the tokenizer
  std::optional<ChatTemplate> chat_template;  // absent: the file has none that we can render
  std::vector<CloseMark> close_marks;         // of the families that the tokenizer can write

  // The prompt of a request that passed CheckRequest.
  absl::StatusOr<std::vector<int32_t>> Tokenize(const RequestFields& fields) const;
  // The family whose reasoning the prompt `ids`, made of `fields`, leaves open; null: none.
  const ReasoningFamily* OpenedReasoning(const RequestFields& fields, const std::vector<int32_t>& ids) const;
};

// The tokens of `model`, which they keep alive; null without a tokenizer.
std::shared_ptr<const TokenBytes> TokensOf(std::shared_ptr<const LoadedModel> model);

// Reads the header of `spec.path` and fills in the spec's defaults. NotFound (file), InvalidArgument (a field
// of the spec, or a broken file), Unimplemented (an architecture). A tokenizer or template that cannot be
// used is no error: requests that need it are told.
absl::StatusOr<std::shared_ptr<const LoadedModel>> OpenModel(ModelSpec spec);

// Thread safety: safe.
class ModelRegistry {
 public:
  // AlreadyExists.
  absl::Status Add(std::shared_ptr<const LoadedModel> model);
  // NotFound.
  absl::Status Remove(const std::string& name);
  // An empty name finds the only model. NotFound naming the models there are; InvalidArgument for an empty
  // name among several.
  absl::StatusOr<std::shared_ptr<const LoadedModel>> Find(const std::string& name) const;
  std::vector<std::shared_ptr<const LoadedModel>> All() const;

 private:
  mutable Mutex mu_;
  std::map<std::string, std::shared_ptr<const LoadedModel>, std::less<>> models_ ABSL_GUARDED_BY(mu_);
};

}  // namespace phalanx::coordinator
