#include "coordinator/model_registry.h"

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "base/gguf.h"
#include "base/shard_plan.h"
#include "base/status_macros.h"
#include "coordinator/text/detokenizer.h"

namespace phalanx::coordinator {
namespace {

constexpr int32_t kMaxGroups = 1024;
constexpr size_t kMaxNameBytes = 128;

class ModelText : public TextStream {
 public:
  explicit ModelText(std::shared_ptr<const LoadedModel> model)
      : model_(std::move(model)), detokenizer_(&model_->tokenizer->token_bytes()) {}

  void Push(int32_t id, std::string* out) override {
    // An id that the model has but its tokenizer has not (a padded vocabulary) stands for no text.
    detokenizer_.Feed(id, out).IgnoreError();
  }
  void Finish(std::string* out) override { detokenizer_.Finish(out); }

 private:
  const std::shared_ptr<const LoadedModel> model_;
  Detokenizer detokenizer_;
};

absl::Status CheckName(const std::string& name) {
  const bool printable = std::none_of(name.begin(), name.end(), [](char c) {
    return static_cast<unsigned char>(c) < 0x20 || static_cast<unsigned char>(c) == 0x7f;
  });
  if (name.empty() || name.size() > kMaxNameBytes || !printable) {
    return absl::InvalidArgumentError(absl::StrCat("spec.name has ", name.size(), " bytes",
                                                   printable ? "" : " and control characters",
                                                   "; it must be 1 to ", kMaxNameBytes, " printable bytes"));
  }
  return absl::OkStatus();
}

absl::Status CompleteSpec(const GgufFile& file, const ModelConfig& config, ModelSpec* spec) {
  if (spec->name.empty()) spec->name = std::filesystem::path(spec->path).stem().string();
  PHX_RETURN_IF_ERROR(CheckName(spec->name));
  if (spec->tensor_parallel < 0 || spec->tensor_parallel > kMaxShards) {
    return absl::InvalidArgumentError(absl::StrCat("spec.tensor_parallel is ", spec->tensor_parallel,
                                                   "; it must be 1 to ", kMaxShards, " (0: 1)"));
  }
  if (spec->tensor_parallel == 0) spec->tensor_parallel = 1;
  if (spec->groups < 0 || spec->groups > kMaxGroups) {
    return absl::InvalidArgumentError(
        absl::StrCat("spec.groups is ", spec->groups, "; it must be 1 to ", kMaxGroups, " (0: 1)"));
  }
  if (spec->groups == 0) spec->groups = 1;
  if (spec->shards != 0 && (spec->shards < spec->tensor_parallel || spec->shards > kMaxShards)) {
    return absl::InvalidArgumentError(absl::StrCat("spec.shards is ", spec->shards, "; it must be ",
                                                   spec->tensor_parallel, " to ", kMaxShards,
                                                   " (0: default)"));
  }
  if (spec->shards == 0) spec->shards = std::max(kDefaultShards, spec->tensor_parallel);
  PHX_RETURN_IF_ERROR(MakeShardPlan(config, spec->shards, spec->tensor_parallel).status());
  if (spec->context_length < 0 || spec->context_length > config.context_length) {
    return absl::InvalidArgumentError(absl::StrCat("spec.context_length is ", spec->context_length, "; ",
                                                   file.path(), " was made for 1 to ", config.context_length,
                                                   " positions (0: all)"));
  }
  if (spec->context_length == 0) spec->context_length = config.context_length;
  return absl::OkStatus();
}

// The model's own generation defaults, as converters write them.
absl::Status ReadDefaults(const GgufFile& file, ModelLimits* limits) {
  if (file.FindValue("general.sampling.temp") != nullptr) {
    PHX_ASSIGN_OR_RETURN(const double value, file.GetFloat("general.sampling.temp"));
    if (!std::isfinite(value) || value < 0) {
      return absl::InvalidArgumentError(
          absl::StrCat(file.path(), ": general.sampling.temp is ", value, "; it must be at least 0"));
    }
    limits->temperature = static_cast<float>(value);
  }
  if (file.FindValue("general.sampling.top_k") != nullptr) {
    PHX_ASSIGN_OR_RETURN(const int64_t value, file.GetInt("general.sampling.top_k"));
    limits->top_k = static_cast<int32_t>(std::clamp<int64_t>(value, 0, limits->vocab_size));
  }
  if (file.FindValue("general.sampling.top_p") != nullptr) {
    PHX_ASSIGN_OR_RETURN(const double value, file.GetFloat("general.sampling.top_p"));
    if (!(value > 0 && value <= 1)) {
      return absl::InvalidArgumentError(absl::StrCat(file.path(), ": general.sampling.top_p is ", value,
                                                     "; it must be greater than 0 and at most 1"));
    }
    limits->top_p = static_cast<float>(value);
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<std::shared_ptr<const LoadedModel>> OpenModel(ModelSpec spec) {
  if (spec.path.empty()) return absl::InvalidArgumentError("spec.path is empty; it must name a GGUF file");
  // Workers may have another working directory.
  std::error_code error;
  const std::filesystem::path absolute = std::filesystem::absolute(spec.path, error);
  if (!error) spec.path = absolute.lexically_normal().string();
  PHX_ASSIGN_OR_RETURN(const std::unique_ptr<GgufFile> file, GgufFile::Open(spec.path));
  auto model = std::make_shared<LoadedModel>();
  PHX_ASSIGN_OR_RETURN(model->config, ModelConfigFromGguf(*file));
  PHX_RETURN_IF_ERROR(CompleteSpec(*file, model->config, &spec));
  for (const GgufTensor& tensor : file->tensors()) {
    int64_t elements = 1;
    for (const int64_t dim : tensor.dims) elements *= dim;
    model->num_parameters += elements;
  }
  ModelLimits& limits = model->limits;
  limits.name = spec.name;
  limits.vocab_size = model->config.vocab_size;
  limits.context_length = spec.context_length;
  PHX_RETURN_IF_ERROR(ReadDefaults(*file, &limits));

  if (auto tokenizer = TokenizerFromGguf(*file); tokenizer.ok()) {
    model->tokenizer = *std::move(tokenizer);
    limits.has_tokenizer = true;
    model->control_names = ControlNames(model->tokenizer->token_bytes());
    limits.end_ids = model->tokenizer->stop_ids();
    for (const std::string& bytes : model->tokenizer->token_bytes().bytes) {
      limits.longest_token_bytes = std::max(limits.longest_token_bytes, static_cast<int64_t>(bytes.size()));
    }
  } else {
    limits.missing_text = absl::StrCat("has no usable tokenizer (", tokenizer.status().message(), ")");
  }
  const GgufValue* source = file->FindValue("tokenizer.chat_template");
  if (source == nullptr) {
    limits.missing_template = "has no chat template";
  } else if (model->tokenizer != nullptr) {
    PHX_ASSIGN_OR_RETURN(const std::string_view text, file->GetString("tokenizer.chat_template"));
    if (auto parsed = ChatTemplate::Parse(std::string(text)); parsed.ok()) {
      model->chat_template = *std::move(parsed);
      limits.has_chat_template = true;
    } else {
      limits.missing_template = absl::StrCat("has a chat template that cannot be used (",
                                             std::string(parsed.status().message()), ")");
    }
  }
  model->spec = std::move(spec);
  return model;
}

absl::StatusOr<std::vector<int32_t>> LoadedModel::Tokenize(const RequestFields& fields) const {
  switch (fields.prompt) {
    case PromptKind::kChat:
      return EncodeChat(fields.chat, *chat_template, *tokenizer, control_names, fields.chat_options);
    case PromptKind::kText:
      return EncodeText(fields.text, *tokenizer);
    default:
      return fields.tokens;
  }
}

std::unique_ptr<TextStream> MakeTextStream(std::shared_ptr<const LoadedModel> model) {
  if (model->tokenizer == nullptr) return nullptr;
  return std::make_unique<ModelText>(std::move(model));
}

absl::Status ModelRegistry::Add(std::shared_ptr<const LoadedModel> model) {
  MutexLock lock(mu_);
  const std::string& name = model->spec.name;
  if (models_.contains(name)) {
    return absl::AlreadyExistsError(
        absl::StrCat("a model named '", name, "' is loaded; unload it first or choose another name"));
  }
  models_[name] = std::move(model);
  return absl::OkStatus();
}

absl::Status ModelRegistry::Remove(const std::string& name) {
  MutexLock lock(mu_);
  const auto it = models_.find(name);
  if (it == models_.end()) return absl::NotFoundError(absl::StrCat("no model named '", name, "' is loaded"));
  models_.erase(it);
  return absl::OkStatus();
}

absl::StatusOr<std::shared_ptr<const LoadedModel>> ModelRegistry::Find(const std::string& name) const {
  MutexLock lock(mu_);
  if (const auto it = models_.find(name); it != models_.end()) return it->second;
  if (models_.empty()) {
    return absl::NotFoundError(name.empty() ? std::string("no model is loaded")
                                            : absl::StrCat("model '", name, "' is not loaded; no model is"));
  }
  if (name.empty() && models_.size() == 1) return models_.begin()->second;
  const std::string names =
      absl::StrJoin(models_, ", ", [](std::string* out, const auto& entry) { out->append(entry.first); });
  if (name.empty()) {
    return absl::InvalidArgumentError(
        absl::StrCat("model is empty, but several are loaded; name one of: ", names));
  }
  return absl::NotFoundError(
      absl::StrCat("model '", name.substr(0, 256), "' is not loaded; loaded: ", names));
}

std::vector<std::shared_ptr<const LoadedModel>> ModelRegistry::All() const {
  MutexLock lock(mu_);
  std::vector<std::shared_ptr<const LoadedModel>> out;
  for (const auto& [name, model] : models_) out.push_back(model);
  return out;
}

}  // namespace phalanx::coordinator
