#include "coordinator/model_registry.h"

#include <algorithm>
#include <filesystem>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "base/gguf.h"
#include "base/shard_plan.h"
#include "base/status_macros.h"
#include "base/strings.h"
#include "coordinator/generation_config.h"
#include "coordinator/text/utf8.h"

namespace phalanx::coordinator {
namespace {

constexpr int32_t kMaxGroups = 1024;
constexpr size_t kMaxNameBytes = 128;

constexpr size_t kMaxPathBytes = 4096;

absl::Status MakeAbsolute(const char* field, std::string* path) {
  if (path->size() > kMaxPathBytes) {
    return absl::InvalidArgumentError(
        absl::StrCat(field, " has ", path->size(), " bytes; at most ", kMaxPathBytes, " are allowed"));
  }
  std::error_code error;
  const std::filesystem::path absolute = std::filesystem::absolute(*path, error);
  if (!error) *path = absolute.lexically_normal().string();
  return absl::OkStatus();
}

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

// A control token of one of these names is never followed by more of the same answer, whatever the file says
// of its ends; llama.cpp takes them likewise. "<|end|>" ends but a message of several where there is a
// "<|return|>".
std::vector<int32_t> NamedEnds(const TokenBytes& table) {
  constexpr std::string_view kNames[] = {"<|eot_id|>",    "<|eom_id|>",
                                         "<|im_end|>",    "<|end|>",
                                         "<|return|>",    "<|endoftext|>",
                                         "<end_of_turn>", "<|end_of_text|>",
                                         "<EOT>",         "<\uff5cend\u2581of\u2581sentence\uff5c>"};
  std::vector<int32_t> ids;
  int32_t message_end = -1;
  bool returns = false;
  for (size_t id = 0; id < table.bytes.size(); ++id) {
    const std::string& name = table.bytes[id];
    if (!table.is_control[id] || std::find(std::begin(kNames), std::end(kNames), name) == std::end(kNames)) {
      continue;
    }
    returns |= name == "<|return|>";
    if (name == "<|end|>") {
      message_end = static_cast<int32_t>(id);
    } else {
      ids.push_back(static_cast<int32_t>(id));
    }
  }
  if (message_end >= 0 && !returns) ids.push_back(message_end);
  return ids;
}

void AddEnds(const std::vector<int32_t>& more, std::vector<int32_t>* ids) {
  ids->insert(ids->end(), more.begin(), more.end());
  std::sort(ids->begin(), ids->end());
  ids->erase(std::unique(ids->begin(), ids->end()), ids->end());
}

absl::Status TakeTokenizer(absl::StatusOr<std::unique_ptr<Tokenizer>> tokenizer, LoadedModel* model) {
  ModelLimits& limits = model->limits;
  if (!tokenizer.ok()) {
    limits.missing_text = absl::StrCat("has no usable tokenizer (", tokenizer.status().message(), ")");
    limits.missing_template = "has no usable tokenizer";
    return absl::OkStatus();
  }
  model->tokenizer = *std::move(tokenizer);
  const TokenBytes& table = model->tokenizer->token_bytes();
  if (model->tokenizer->vocab_size() > limits.vocab_size) {
    return absl::InvalidArgumentError(
        absl::StrCat("the tokenizer has ", model->tokenizer->vocab_size(), " tokens, but the model has ",
                     limits.vocab_size, "; it must be the tokenizer that the model was made with"));
  }
  limits.has_tokenizer = true;
  model->control_names = ControlNames(table);
  for (const std::string& bytes : table.bytes) {
    limits.longest_token_bytes = std::max(limits.longest_token_bytes, static_cast<int64_t>(bytes.size()));
  }
  for (const ReasoningFamily& family : ReasoningFamilies()) {
    auto ids = model->tokenizer->Encode(family.close, /*parse_special=*/true);
    if (ids.ok() && !ids->empty()) model->close_marks.push_back({std::string(family.name), *std::move(ids)});
  }
  return absl::OkStatus();
}

void TakeTemplate(absl::StatusOr<std::string> source, LoadedModel* model) {
  ModelLimits& limits = model->limits;
  if (model->tokenizer == nullptr) return;  // what is missing is said already
  if (!source.ok()) {
    limits.missing_template = absl::StrCat("has no chat template (", source.status().message(), ")");
    return;
  }
  // GetModel sends it as a string: one that is not UTF-8 would make the whole answer unreadable.
  if (ValidUtf8Prefix(*source) == source->size()) limits.chat_template = *source;
  if (auto parsed = ChatTemplate::Parse(*std::move(source)); parsed.ok()) {
    model->chat_template = *std::move(parsed);
    limits.has_chat_template = true;
  } else {
    limits.missing_template = absl::StrCat("has a chat template that cannot be used (",
                                           std::string(parsed.status().message()), ")");
  }
}

absl::StatusOr<std::string> TemplateOfGguf(const GgufFile& file) {
  constexpr const char* kKey = "tokenizer.chat_template";
  if (file.FindValue(kKey) == nullptr) {
    return absl::NotFoundError(absl::StrCat(file.path(), " has no ", kKey));
  }
  PHX_ASSIGN_OR_RETURN(const std::string_view text, file.GetString(kKey));
  return std::string(text);
}

absl::Status ReadGgufText(const GgufFile& file, LoadedModel* model) {
  PHX_ASSIGN_OR_RETURN(model->limits.defaults, SamplingDefaultsFromGguf(file));
  PHX_RETURN_IF_ERROR(TakeTokenizer(TokenizerFromGguf(file), model));
  TakeTemplate(TemplateOfGguf(file), model);
  if (model->tokenizer == nullptr) return absl::OkStatus();
  AddEnds(model->tokenizer->stop_ids(), &model->limits.end_ids);
  AddEnds(NamedEnds(model->tokenizer->token_bytes()), &model->limits.end_ids);
  return absl::OkStatus();
}

absl::Status ReadFolderText(const std::string& folder, const GgufFile& file, LoadedModel* model) {
  PHX_RETURN_IF_ERROR(TakeTokenizer(TokenizerFromDirectory(folder), model));
  TakeTemplate(ReadFolderTemplate(folder), model);
  if (model->tokenizer != nullptr) AddEnds(model->tokenizer->stop_ids(), &model->limits.end_ids);
  const std::string path = absl::StrCat(folder, "/generation_config.json");
  const auto config = ReadGenerationConfig(path, model->limits.vocab_size);
  if (config.ok()) {
    model->limits.defaults = config->sampling;
    AddEnds(config->end_ids, &model->limits.end_ids);
  } else if (absl::IsNotFound(config.status())) {
    PHX_ASSIGN_OR_RETURN(model->limits.defaults, SamplingDefaultsFromGguf(file));
  } else {
    return config.status();
  }
  if (model->tokenizer != nullptr && (!config.ok() || config->end_ids.empty())) {
    AddEnds(NamedEnds(model->tokenizer->token_bytes()), &model->limits.end_ids);
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<std::shared_ptr<const LoadedModel>> OpenModel(ModelSpec spec) {
  if (spec.path.empty()) return absl::InvalidArgumentError("spec.path is empty; it must name a GGUF file");
  // Workers may have another working directory.
  PHX_RETURN_IF_ERROR(MakeAbsolute("spec.path", &spec.path));
  if (!spec.tokenizer.empty()) {
    PHX_RETURN_IF_ERROR(MakeAbsolute("spec.tokenizer", &spec.tokenizer));
    if (spec.tokenizer.size() > 1 && spec.tokenizer.back() == '/') spec.tokenizer.pop_back();
    std::error_code error;
    if (!std::filesystem::is_directory(spec.tokenizer, error)) {
      return absl::NotFoundError(absl::StrCat("spec.tokenizer is ", Quote(spec.tokenizer),
                                              "; it must be a folder with tokenizer.json"));
    }
  }
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
  PHX_RETURN_IF_ERROR(spec.tokenizer.empty() ? ReadGgufText(*file, model.get())
                                             : ReadFolderText(spec.tokenizer, *file, model.get()));
  // A cut on what the vocabulary can hold keeps a file's value in the range of a request's.
  limits.defaults.top_k = std::min(limits.defaults.top_k, limits.vocab_size);
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

const ReasoningFamily* LoadedModel::OpenedReasoning(const RequestFields& fields,
                                                    const std::vector<int32_t>& ids) const {
  if (tokenizer == nullptr) return nullptr;
  if (fields.prompt == PromptKind::kText) return ReasoningLeftOpen(fields.text);
  // What the template made of a chat's end. A mark is at most as many tokens as it has bytes; white space may
  // follow it.
  constexpr size_t kEndTokens = 64;
  const size_t first =
      fields.prompt == PromptKind::kChat && ids.size() > kEndTokens ? ids.size() - kEndTokens : 0;
  std::string text;
  const TokenBytes& table = tokenizer->token_bytes();
  for (size_t i = first; i < ids.size(); ++i) {
    if (static_cast<size_t>(ids[i]) < table.bytes.size()) text += table.bytes[static_cast<size_t>(ids[i])];
  }
  if (fields.prompt == PromptKind::kTokens) return ReasoningLeftOpen(text);
  if (fields.chat_options.continue_final_message) {
    if (const ReasoningFamily* open = ReasoningLeftOpen(fields.chat.back().content)) return open;
  }
  return ReasoningOpenedAtEnd(text);
}

std::shared_ptr<const TokenBytes> TokensOf(std::shared_ptr<const LoadedModel> model) {
  if (model->tokenizer == nullptr) return nullptr;
  const TokenBytes* tokens = &model->tokenizer->token_bytes();
  return std::shared_ptr<const TokenBytes>(std::move(model), tokens);
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
