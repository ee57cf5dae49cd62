// Opens a model for serving: reads its headers, its tokenizer, its chat template and its generation defaults,
// from a GGUF file or from a Hugging Face directory.
#pragma once

#include <memory>

#include "absl/status/statusor.h"
#include "coordinator/loaded_model.h"

namespace phalanx::coordinator {

// Fills in the spec's defaults. NotFound naming the file that is missing, InvalidArgument (a field of the
// spec, or a broken file), Unimplemented (an architecture). A tokenizer or chat template that is missing or
// cannot be used is no error: requests that need it are told.
//
// Sampling defaults: generation_config.json, of spec.tokenizer or else of the model's directory; a GGUF
// file's own. End tokens: those of generation_config.json, else of config.json, and the tokenizer's; where no
// file of the model names any, tokens that are known by name to end a turn. A GGUF file's are joined by
// those.
absl::StatusOr<std::shared_ptr<const LoadedModel>> OpenModel(ModelSpec spec);

// The same in two steps. The first reads headers alone, a fraction of the time: after it the spec is
// complete, which is all that workers need to begin.
class ModelOpening {
 public:
  static absl::StatusOr<ModelOpening> Begin(ModelSpec spec);
  ModelOpening(ModelOpening&&);
  ModelOpening& operator=(ModelOpening&&);
  ~ModelOpening();

  const ModelSpec& spec() const;
  absl::StatusOr<std::shared_ptr<const LoadedModel>> Finish() &&;

 private:
  struct State;
  explicit ModelOpening(std::unique_ptr<State> state);
  std::unique_ptr<State> state_;
};

}  // namespace phalanx::coordinator
