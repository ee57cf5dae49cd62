#include "coordinator/open_model.h"

#include <algorithm>
#include <filesystem>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "base/gguf.h"
#include "base/hf_config.h"
#include "base/memory_estimate.h"
#include "base/safetensors.h"
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
  if (path->find('\0') != std::string::npos) {
    return absl::InvalidArgumentError(absl::StrCat(field, " has a zero byte, which no path has"));
  }
  std::error_code error;
  const std::filesystem::path absolute = std::filesystem::absolute(*path, error);
  if (!error) *path = absolute.lexically_normal().string();
  if (path->size() > 1 && path->back() == '/') path->pop_back();
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

// "dir/phi-4-Q4_K-00001-of-00003.gguf" -> "phi-4-Q4_K"; a directory's name as it is.
std::string NameOf(const std::string& path, bool is_directory) {
  const std::filesystem::path file(path);
  if (is_directory) return file.filename().string();
  std::string name = file.stem().string();
  // Any part stands for the whole of a split file.
  constexpr std::string_view kPart = "-00000-of-00000";
  if (name.size() > kPart.size()) {
    std::string end = name.substr(name.size() - kPart.size());
    for (char& c : end) {
      if (c >= '0' && c <= '9') c = '0';
    }
    if (end == kPart) name.resize(name.size() - kPart.size());
  }
  return name;
}

absl::Status CompleteSpec(const ModelConfig& config, bool is_directory, ModelSpec* spec) {
  if (spec->name.empty()) spec->name = NameOf(spec->path, is_directory);
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
                                                   spec->path, " was made for 1 to ", config.context_length,
                                                   " positions (0: all)"));
  }
  if (spec->context_length == 0) spec->context_length = config.context_length;
  if (IsQuantised(spec->kv_type) && config.mla) {
    return absl::InvalidArgumentError(absl::StrCat("spec.kv_cache_dtype is ", KvTypeName(spec->kv_type),
                                                   ", which is not for latent attention (MLA), which ",
                                                   spec->path, " has; bf16 and fp32 are"));
  }
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
    limits.missing_template = limits.missing_text;
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

bool Exists(const std::string& path) {
  std::error_code error;
  return std::filesystem::exists(path, error);
}

// --- GGUF

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

absl::StatusOr<GenerationConfig> DefaultsOfGguf(const GgufFile& file) {
  GenerationConfig out;
  PHX_ASSIGN_OR_RETURN(out.sampling, SamplingDefaultsFromGguf(file));
  return out;
}

int64_t CountParameters(const GgufFile& file) {
  int64_t sum = 0;
  for (const GgufTensor& tensor : file.tensors()) {
    if (tensor.name.rfind("rope_", 0) == 0) continue;  // divisors of RoPE
    int64_t elements = 1;
    for (const int64_t dim : tensor.dims) elements *= dim;
    sum += elements;
  }
  return sum;
}

// --- Hugging Face directories

// All but the tensors themselves, which the workers check.
absl::StatusOr<HfConfig> OpenDirectory(const std::string& directory) {
  if (!Exists(directory + "/config.json")) {
    return absl::NotFoundError(
        absl::StrCat(directory, "/config.json is missing; a model is a Hugging Face directory with ",
                     "config.json and *.safetensors, or a GGUF file by its own name"));
  }
  PHX_ASSIGN_OR_RETURN(HfConfig config, ReadHfConfig(directory));
  if (const absl::Status known = CheckArchitecture(config.model.architecture); !known.ok()) {
    return absl::Status(known.code(), absl::StrCat(directory, "/config.json: ", known.message()));
  }
  PHX_ASSIGN_OR_RETURN(const SafetensorsIndex index, FindSafetensors(directory));
  if (index.files.empty()) {
    return absl::NotFoundError(absl::StrCat(directory,
                                            " holds no weights: neither model.safetensors.index.json, nor "
                                            "model.safetensors, nor any other *.safetensors"));
  }
  std::vector<std::string> missing;
  for (const std::string& name : index.files) {
    if (!Exists(directory + "/" + name)) missing.push_back(name);
  }
  if (!missing.empty()) {
    return absl::NotFoundError(absl::StrCat(directory, "/", missing[0], " is missing: ", missing.size(),
                                            " of the ", index.files.size(), " files that ",
                                            "model.safetensors.index.json names are not there"));
  }
  return config;
}

// What a directory says besides its text.
absl::StatusOr<GenerationConfig> DefaultsOfDirectory(const std::string& directory, const HfConfig& config) {
  auto out = ReadGenerationConfig(directory + "/generation_config.json", config.model.vocab_size);
  if (absl::IsNotFound(out.status())) out = GenerationConfig();
  PHX_RETURN_IF_ERROR(out.status());
  if (out->end_ids.empty()) out->end_ids.assign(config.eos.begin(), config.eos.end());
  return out;
}

absl::StatusOr<std::unique_ptr<Tokenizer>> FolderTokenizer(const std::string& folder) {
  const std::string path = folder + "/tokenizer.json";
  if (!Exists(path)) return absl::NotFoundError(absl::StrCat(path, " is missing"));
  return TokenizerFromDirectory(folder);
}

// Tokenizer, template and defaults of `folder`; `own`: the model's own defaults, for what the folder does not
// say.
absl::Status ReadFolderText(const std::string& folder, const absl::StatusOr<GenerationConfig>& own,
                            LoadedModel* model) {
  ModelLimits& limits = model->limits;
  auto defaults = ReadGenerationConfig(folder + "/generation_config.json", limits.vocab_size);
  if (absl::IsNotFound(defaults.status())) defaults = own;
  PHX_RETURN_IF_ERROR(defaults.status());
  limits.defaults = defaults->sampling;
  AddEnds(!defaults->end_ids.empty() || !own.ok() ? defaults->end_ids : own->end_ids, &limits.end_ids);
  const bool named = !limits.end_ids.empty();

  PHX_RETURN_IF_ERROR(TakeTokenizer(FolderTokenizer(folder), model));
  TakeTemplate(ReadFolderTemplate(folder), model);
  if (model->tokenizer == nullptr) return absl::OkStatus();
  AddEnds(model->tokenizer->stop_ids(), &limits.end_ids);
  if (!named) AddEnds(NamedEnds(model->tokenizer->token_bytes()), &limits.end_ids);
  return absl::OkStatus();
}

absl::Status CheckPaths(ModelSpec* spec) {
  if (spec->path.empty()) {
    return absl::InvalidArgumentError(
        "spec.path is empty; it must name a GGUF file or a Hugging Face directory");
  }
  // Workers may have another working directory.
  PHX_RETURN_IF_ERROR(MakeAbsolute("spec.path", &spec->path));
  if (spec->tokenizer.empty()) return absl::OkStatus();
  PHX_RETURN_IF_ERROR(MakeAbsolute("spec.tokenizer", &spec->tokenizer));
  if (!Exists(spec->tokenizer + "/tokenizer.json")) {
    return absl::NotFoundError(absl::StrCat("spec.tokenizer is ", Quote(spec->tokenizer),
                                            "; it must be a folder with tokenizer.json"));
  }
  return absl::OkStatus();
}

}  // namespace

struct ModelOpening::State {
  std::shared_ptr<LoadedModel> model = std::make_shared<LoadedModel>();
  bool is_directory = false;
  std::unique_ptr<GgufFile> file;  // null: a directory
  absl::StatusOr<GenerationConfig> own;
};

ModelOpening::ModelOpening(std::unique_ptr<State> state) : state_(std::move(state)) {}
ModelOpening::ModelOpening(ModelOpening&&) = default;
ModelOpening& ModelOpening::operator=(ModelOpening&&) = default;
ModelOpening::~ModelOpening() = default;

const ModelSpec& ModelOpening::spec() const { return state_->model->spec; }

absl::StatusOr<ModelOpening> ModelOpening::Begin(ModelSpec spec) {
  PHX_RETURN_IF_ERROR(CheckPaths(&spec));
  auto state = std::make_unique<State>();
  LoadedModel& model = *state->model;
  std::error_code error;
  state->is_directory = std::filesystem::is_directory(spec.path, error);
  if (state->is_directory) {
    PHX_ASSIGN_OR_RETURN(HfConfig config, OpenDirectory(spec.path));
    state->own = DefaultsOfDirectory(spec.path, config);
    // Weights need not be read to be counted.
    PHX_ASSIGN_OR_RETURN(const WeightSizes sizes, WeightSizesOf(config.model, WeightFormat::kBf16));
    model.num_parameters = sizes.total().parameters;
    model.config = std::move(config.model);
  } else {
    PHX_ASSIGN_OR_RETURN(state->file, GgufFile::Open(spec.path));
    PHX_ASSIGN_OR_RETURN(model.config, ModelConfigFromGguf(*state->file));
    state->own = DefaultsOfGguf(*state->file);
    model.num_parameters = CountParameters(*state->file);
  }
  PHX_RETURN_IF_ERROR(CompleteSpec(model.config, state->is_directory, &spec));
  model.limits.name = spec.name;
  model.limits.vocab_size = model.config.vocab_size;
  model.limits.context_length = spec.context_length;
  model.spec = std::move(spec);
  return ModelOpening(std::move(state));
}

absl::StatusOr<std::shared_ptr<const LoadedModel>> ModelOpening::Finish() && {
  const std::shared_ptr<LoadedModel> model = std::move(state_->model);
  const ModelSpec& spec = model->spec;
  if (!state_->is_directory && spec.tokenizer.empty()) {
    PHX_RETURN_IF_ERROR(ReadGgufText(*state_->file, model.get()));
  } else {
    const std::string& folder = spec.tokenizer.empty() ? spec.path : spec.tokenizer;
    PHX_RETURN_IF_ERROR(ReadFolderText(folder, state_->own, model.get()));
  }
  // A cut on what the vocabulary can hold keeps a file's value in the range of a request's.
  ModelLimits& limits = model->limits;
  limits.defaults.top_k = std::min(limits.defaults.top_k, limits.vocab_size);
  state_.reset();
  return model;
}

absl::StatusOr<std::shared_ptr<const LoadedModel>> OpenModel(ModelSpec spec) {
  PHX_ASSIGN_OR_RETURN(ModelOpening opening, ModelOpening::Begin(std::move(spec)));
  return std::move(opening).Finish();
}

}  // namespace phalanx::coordinator
