// A model's facts from its Hugging Face folder.
#include <algorithm>
#include <filesystem>
#include <initializer_list>
#include <system_error>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "base/hf_config.h"
#include "base/json_file.h"
#include "base/reasoning.h"
#include "base/safetensors.h"
#include "base/status_macros.h"
#include "base/strings.h"
#include "base/tokenizer_json.h"
#include "client/model_facts.h"

namespace phalanx {
namespace {

using nlohmann::json;

constexpr int64_t kMaxTemplateBytes = int64_t{4} << 20;

bool Exists(const std::string& path) {
  std::error_code error;
  return std::filesystem::exists(path, error);
}

// A file beside config.json that may be absent. What is wrong with it becomes a note, and null.
json ReadOptional(const std::string& path, int64_t max_bytes, ModelFacts& facts) {
  if (!Exists(path)) return nullptr;
  auto object = ReadJsonFile(path, max_bytes);
  if (!object.ok()) {
    facts.notes.emplace_back(object.status().message());
    return nullptr;
  }
  if (!object->is_object()) {
    facts.notes.push_back(absl::StrCat(path, ": holds ", ShowJson(*object), ", must be an object"));
    return nullptr;
  }
  return *std::move(object);
}

absl::Status CountWeights(const std::string& directory, ModelFacts& facts) {
  PHX_ASSIGN_OR_RETURN(const SafetensorsIndex index, FindSafetensors(directory));
  size_t missing = 0;
  for (const std::string& name : index.files) missing += !Exists(directory + "/" + name);
  if (missing > 0) {
    facts.notes.push_back(absl::StrCat(missing, " of ", index.files.size(),
                                       " files of weights that model.safetensors.index.json names are not "
                                       "here; sizes are computed from config.json"));
    return absl::OkStatus();
  }
  TensorCounter counter(&facts);
  for (const std::string& name : index.files) {
    PHX_ASSIGN_OR_RETURN(const std::unique_ptr<SafetensorsFile> file,
                         SafetensorsFile::Open(directory + "/" + name));
    for (const SafetensorsTensor& tensor : file->tensors()) {
      PHX_RETURN_IF_ERROR(counter.Add(tensor.name, tensor.dtype, tensor.elements, tensor.bytes));
    }
  }
  return absl::OkStatus();
}

// Types of tensors that no weight can have. int32 is how AWQ and GPTQ store theirs.
void CheckTypes(ModelFacts& facts) {
  for (const auto& [type, of_type] : facts.tensor_types) {
    const bool known = type == "F32" || type == "F16" || type == "BF16" || type == "F8_E4M3" || type == "I32";
    if (!known && facts.not_servable.empty()) {
      facts.not_servable =
          absl::StrCat(of_type.tensors, of_type.tensors == 1 ? " tensor is " : " tensors are ", Quote(type),
                       "; supported: F32, F16, BF16, F8_E4M3, and I32 of AWQ "
                       "and GPTQ");
    }
  }
}

void ReadTokenizer(const std::string& directory, ModelFacts& facts, TokenBytes* bytes) {
  const auto tokenizer = ReadTokenizerJson(directory);
  if (!tokenizer.ok()) {
    facts.notes.push_back(absl::IsNotFound(tokenizer.status()) ? "there is no tokenizer.json"
                                                               : std::string(tokenizer.status().message()));
    return;
  }
  TokenizerFacts out;
  out.kind = "BPE";
  out.vocab_size = tokenizer->vocab_size;
  out.merges = static_cast<int64_t>(tokenizer->merges.size());
  if (const auto pre = tokenizer->rest.find("pre_tokenizer");
      pre != tokenizer->rest.end() && pre->is_object()) {
    const auto type = pre->find("type");
    if (type != pre->end() && type->is_string()) out.pre = type->get<std::string>();
  }
  facts.tokenizer = out;
  *bytes = TokenBytesOf(*tokenizer);
}

void ReadTemplate(const std::string& directory, const json& tokenizer_config, ModelFacts& facts,
                  std::string* text) {
  const std::string path = directory + "/chat_template.jinja";
  std::string source;
  if (Exists(path)) {
    auto read = ReadFile(path, kMaxTemplateBytes);
    if (!read.ok()) {
      facts.notes.emplace_back(read.status().message());
      return;
    }
    *text = *std::move(read);
    source = "chat_template.jinja";
  } else if (tokenizer_config.is_object()) {
    const auto value = tokenizer_config.find("chat_template");
    if (value == tokenizer_config.end()) return;
    source = "tokenizer_config.json";
    if (value->is_string()) *text = value->get<std::string>();
    // Several by name; the one called "default" counts.
    for (const json& named : value->is_array() ? *value : json::array()) {
      if (!named.is_object() || named.value("name", json()) != "default") continue;
      const auto body = named.find("template");
      if (body != named.end() && body->is_string()) *text = body->get<std::string>();
    }
  }
  if (!text->empty()) facts.chat_template = DescribeTemplate(source, *text);
}

void AddSpecial(const char* role, const json& id, const TokenBytes& bytes, ModelFacts& facts) {
  for (const json& one : id.is_array() ? id : json::array({id})) {
    if (!one.is_number_integer() || one < 0 || one > (int64_t{1} << 30)) continue;
    const auto number = one.get<int64_t>();
    const bool known = number < static_cast<int64_t>(bytes.bytes.size());
    facts.special_tokens.push_back({role, number, known ? bytes.bytes[number] : ""});
  }
}

void FindReasoning(const TokenBytes& bytes, const std::string& chat_template, ModelFacts& facts) {
  for (const ReasoningFamily& family : ReasoningFamilies()) {
    const auto open = std::find(bytes.bytes.begin(), bytes.bytes.end(), family.open);
    const auto close = std::find(bytes.bytes.begin(), bytes.bytes.end(), family.close);
    const bool tokens = open != bytes.bytes.end() && close != bytes.bytes.end();
    if (!tokens && chat_template.find(family.close) == std::string::npos) continue;
    facts.reasoning = {
        std::string(family.name), std::string(family.open), std::string(family.close),
        tokens ? absl::StrCat("tokens ", open - bytes.bytes.begin(), " and ", close - bytes.bytes.begin())
               : "the chat template"};
    if (tokens) return;
  }
}

}  // namespace

absl::StatusOr<ModelFacts> ReadHfFacts(const std::string& directory) {
  if (!Exists(directory + "/config.json")) {
    return absl::NotFoundError(absl::StrCat(directory,
                                            "/config.json: no such file; a model is a GGUF file or a ",
                                            "Hugging Face folder with config.json"));
  }
  PHX_ASSIGN_OR_RETURN(HfConfig config, ReadHfConfig(directory));
  ModelFacts facts;
  facts.path = directory;
  facts.format = "Hugging Face";
  facts.class_name = config.class_name;
  facts.config = std::move(config.model);
  facts.dtype = config.dtype;
  facts.not_servable = std::string(CheckArchitecture(facts.config.architecture).message());

  PHX_RETURN_IF_ERROR(CountWeights(directory, facts));
  CheckTypes(facts);
  if (facts.tensor_types.empty()) {
    const Quantisation quantisation = facts.config.quantisation;
    const WeightFormat format = quantisation == Quantisation::kFp8    ? WeightFormat::kFp8
                                : quantisation != Quantisation::kNone ? WeightFormat::kInt4
                                : config.dtype == "float32"           ? WeightFormat::kF32
                                                                      : WeightFormat::kBf16;
    auto sizes = WeightSizesOf(facts.config, format);
    if (!sizes.ok()) {
      return absl::Status(sizes.status().code(),
                          absl::StrCat(directory, "/config.json: ", sizes.status().message()));
    }
    facts.weights = *sizes;
  }

  TokenBytes bytes;
  ReadTokenizer(directory, facts, &bytes);
  const json generation = ReadOptional(directory + "/generation_config.json", kMaxConfigBytes, facts);
  if (generation.is_object()) {
    for (const char* key : {"do_sample", "temperature", "top_k", "top_p", "min_p", "repetition_penalty",
                            "max_new_tokens", "max_length"}) {
      const auto value = generation.find(key);
      if (value != generation.end() && (value->is_number() || value->is_boolean())) {
        facts.generation.emplace_back(key, *value);
      }
    }
  }
  if (config.bos) AddSpecial("bos", *config.bos, bytes, facts);
  // What generation ends at; generation_config.json goes first.
  const auto eos = generation.is_object() ? generation.find("eos_token_id") : generation.end();
  if (generation.is_object() && eos != generation.end() && !eos->is_null()) {
    AddSpecial("eos", *eos, bytes, facts);
  } else {
    AddSpecial("eos", config.eos, bytes, facts);
  }

  const json tokenizer_config =
      ReadOptional(directory + "/tokenizer_config.json", kMaxTemplateBytes * 4, facts);
  std::string chat_template;
  ReadTemplate(directory, tokenizer_config, facts, &chat_template);
  FindReasoning(bytes, chat_template, facts);
  return facts;
}

}  // namespace phalanx
