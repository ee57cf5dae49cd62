#include "coordinator/generation_config.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "absl/strings/str_cat.h"
#include "base/json_file.h"
#include "base/status_macros.h"

namespace phalanx::coordinator {
namespace {

constexpr int64_t kMaxBytes = 1 << 20;
constexpr int64_t kMaxConfigBytes = 16 << 20;  // lists of added tokens are long

// One number of the defaults: in JSON, in GGUF (null: converters do not write it), and what it may be.
struct Number {
  const char* json;
  const char* gguf;
  float SamplingDefaults::*field;
  float least, most;
  bool open;  // `least` itself is not allowed
  const char* right;
};
constexpr float kLargest = std::numeric_limits<float>::max();
constexpr Number kNumbers[] = {
    {"temperature", "general.sampling.temp", &SamplingDefaults::temperature, 0, kLargest, false,
     "at least 0"},
    {"top_p", "general.sampling.top_p", &SamplingDefaults::top_p, 0, 1, true, "greater than 0 and at most 1"},
    {"min_p", "general.sampling.min_p", &SamplingDefaults::min_p, 0, 1, false, "0 to 1"},
    {"repetition_penalty", "general.sampling.penalty_repeat", &SamplingDefaults::repetition_penalty, 0,
     kMaxRepetitionPenalty, true, "greater than 0 and at most 1000"},
};

bool Fits(const Number& number, double value) {
  const auto narrow = static_cast<float>(value);
  return std::isfinite(value) && (number.open ? narrow > number.least : narrow >= number.least) &&
         narrow <= number.most;
}

absl::Status ReadEndIds(const JsonKeys& keys, int32_t vocab_size, std::vector<int32_t>* out) {
  constexpr const char* kKey = "eos_token_id";
  const nlohmann::json* value = keys.Find(kKey);
  if (value == nullptr) return absl::OkStatus();
  constexpr const char* kMust = "a token id, 0 or above, or a list of them";
  const nlohmann::json list = value->is_array() ? *value : nlohmann::json::array({*value});
  for (const nlohmann::json& id : list) {
    if (!id.is_number_unsigned() && !(id.is_number_integer() && id.get<int64_t>() >= 0)) {
      return keys.Bad(kKey, id, kMust);
    }
    // Past the vocabulary, as in config.json: never drawn.
    if (id.get<uint64_t>() < static_cast<uint64_t>(vocab_size)) out->push_back(id.get<int32_t>());
  }
  std::sort(out->begin(), out->end());
  out->erase(std::unique(out->begin(), out->end()), out->end());
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<GenerationConfig> ReadGenerationConfig(const std::string& path, int32_t vocab_size) {
  PHX_ASSIGN_OR_RETURN(const nlohmann::json object, ReadJsonFile(path, kMaxBytes));
  if (!object.is_object()) {
    return absl::InvalidArgumentError(absl::StrCat(path, ": is ", ShowJson(object), ", must be an object"));
  }
  const JsonKeys keys(object, path);
  GenerationConfig out;
  for (const Number& number : kNumbers) {
    const nlohmann::json* value = keys.Find(number.json);
    if (value == nullptr) continue;
    if (!value->is_number() || !Fits(number, value->get<double>())) {
      return keys.Bad(number.json, *value, number.right);
    }
    out.sampling.*number.field = value->get<float>();
  }
  PHX_RETURN_IF_ERROR(keys.OptionalInt("top_k", 0, std::numeric_limits<int32_t>::max(), &out.sampling.top_k));
  bool do_sample = true;
  PHX_RETURN_IF_ERROR(keys.OptionalBool("do_sample", &do_sample));
  if (!do_sample) out.sampling.temperature = 0;
  PHX_RETURN_IF_ERROR(ReadEndIds(keys, vocab_size, &out.end_ids));
  return out;
}

absl::StatusOr<std::string> ReadFolderTemplate(const std::string& folder) {
  const std::string jinja = folder + "/chat_template.jinja", config = folder + "/tokenizer_config.json";
  auto source = ReadFile(jinja, kMaxBytes);
  if (!absl::IsNotFound(source.status())) return source;
  const auto none = absl::NotFoundError(absl::StrCat("neither ", jinja, " nor chat_template in ", config));
  const auto object = ReadJsonFile(config, kMaxConfigBytes);
  if (absl::IsNotFound(object.status())) return none;
  PHX_RETURN_IF_ERROR(object.status());
  const JsonKeys keys(*object, config);
  const nlohmann::json* value = object->is_object() ? keys.Find("chat_template") : nullptr;
  if (value == nullptr) return none;
  if (value->is_string()) return value->get<std::string>();
  const auto text = [](const nlohmann::json& item, const char* key) -> const nlohmann::json* {
    if (!item.is_object()) return nullptr;
    const auto it = item.find(key);
    return it != item.end() && it->is_string() ? &*it : nullptr;
  };
  if (value->is_array()) {
    for (const nlohmann::json& item : *value) {
      const nlohmann::json* name = text(item, "name");
      const nlohmann::json* source_text = text(item, "template");
      if (name != nullptr && source_text != nullptr && *name == "default")
        return source_text->get<std::string>();
    }
  }
  return keys.Bad("chat_template", *value, "a template, or a list of {name, template} with a \"default\"");
}

absl::StatusOr<SamplingDefaults> SamplingDefaultsFromGguf(const GgufFile& file) {
  SamplingDefaults out;
  for (const Number& number : kNumbers) {
    if (file.FindValue(number.gguf) == nullptr) continue;
    PHX_ASSIGN_OR_RETURN(const double value, file.GetFloat(number.gguf));
    if (!Fits(number, value)) {
      return absl::InvalidArgumentError(
          absl::StrCat(file.path(), ": ", number.gguf, " is ", value, ", must be ", number.right));
    }
    out.*number.field = static_cast<float>(value);
  }
  if (file.FindValue("general.sampling.top_k") != nullptr) {
    PHX_ASSIGN_OR_RETURN(const int64_t value, file.GetInt("general.sampling.top_k"));
    // llama.cpp takes all tokens where it is not above 0.
    out.top_k = static_cast<int32_t>(std::clamp<int64_t>(value, 0, std::numeric_limits<int32_t>::max()));
  }
  return out;
}

}  // namespace phalanx::coordinator
