// What a model's publisher set as the defaults of its generation, and its chat template: files of a Hugging
// Face folder, or general.sampling.* of a GGUF file.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "base/gguf.h"
#include "coordinator/admission.h"

namespace phalanx::coordinator {

struct GenerationConfig {
  SamplingDefaults sampling;
  std::vector<int32_t> end_ids;  // eos_token_id; rising, each once
};

// Reads `path`: temperature, top_k, top_p, min_p, repetition_penalty, do_sample (false: temperature 0),
// eos_token_id (a number or a list); other keys are for other programs. NotFound without the file;
// InvalidArgument naming file, key and value for one that cannot be.
absl::StatusOr<GenerationConfig> ReadGenerationConfig(const std::string& path, int32_t vocab_size);

// The chat template of a Hugging Face folder: chat_template.jinja, else chat_template of
// tokenizer_config.json (a string, or a list of which the one named "default" counts). NotFound naming what
// was looked for.
absl::StatusOr<std::string> ReadFolderTemplate(const std::string& folder);

// InvalidArgument naming file, key and value.
absl::StatusOr<SamplingDefaults> SamplingDefaultsFromGguf(const GgufFile& file);

}  // namespace phalanx::coordinator
