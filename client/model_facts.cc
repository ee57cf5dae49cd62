#include "client/model_facts.h"

#include <cctype>
#include <filesystem>
#include <system_error>

#include "absl/status/status.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "base/strings.h"

namespace phalanx {
namespace {

// The number in "blk.12.x" and "model.layers.12.x"; -1: the tensor is in no layer.
int LayerOf(std::string_view name) {
  for (const std::string_view prefix : {"blk.", "model.layers."}) {
    if (name.substr(0, prefix.size()) != prefix) continue;
    const std::string_view rest = name.substr(prefix.size());
    int layer = 0;
    if (absl::SimpleAtoi(ToAbsl(rest.substr(0, rest.find('.'))), &layer)) return layer;
  }
  return -1;
}

// Factors of quantised weights and of RoPE: bytes, but not parameters.
bool IsFactor(std::string_view name) {
  return name.find("weight_scale") != std::string_view::npos || name.substr(0, 5) == "rope_";
}

bool AddTo(int64_t* sum, int64_t value) { return !__builtin_add_overflow(*sum, value, sum); }

}  // namespace

absl::Status TensorCounter::Add(std::string_view name, std::string_view type, int64_t elements,
                                int64_t bytes) {
  const ModelConfig& c = facts_.config;
  TensorTypeFacts& of_type = facts_.tensor_types[std::string(type)];
  ++of_type.tensors;
  bool fits = AddTo(&of_type.bytes, bytes);
  const int64_t parameters = IsFactor(name) ? 0 : elements;
  if (c.num_layers > 0 && LayerOf(name) >= c.num_layers) {
    fits = fits && AddTo(&facts_.mtp_parameters, parameters);
  } else {
    WeightSize& part = facts_.weights[WeightPartOf(name)];
    int64_t key_value_parameters = 0, key_value_bytes = 0;
    // A fused matrix is cut in three.
    if (name.find("qkv") != std::string_view::npos && c.num_heads > 0) {
      const int64_t q = int64_t{c.num_heads} * c.key_dim;
      const int64_t kv = int64_t{c.num_kv_heads} * (int64_t{c.key_dim} + c.value_dim);
      const auto share = [&](int64_t n) {
        return q + kv == 0 ? 0 : static_cast<int64_t>(static_cast<__int128>(n) * kv / (q + kv));
      };
      key_value_parameters = share(parameters);
      key_value_bytes = share(bytes);
      WeightSize& key_value = facts_.weights[WeightPart::kKeyValue];
      fits = fits && AddTo(&key_value.parameters, key_value_parameters) &&
             AddTo(&key_value.bytes, key_value_bytes);
    }
    fits = fits && AddTo(&part.parameters, parameters - key_value_parameters) &&
           AddTo(&part.bytes, bytes - key_value_bytes);
  }
  if (fits) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat(facts_.path, ": the tensors have more than 2^63 bytes"));
}

TemplateFacts DescribeTemplate(std::string source, std::string_view text) {
  const auto has = [text](std::string_view what) { return text.find(what) != std::string_view::npos; };
  return {.source = std::move(source),
          .bytes = static_cast<int64_t>(text.size()),
          .system = has("system"),
          .tools = has("tools") || has("tool_call"),
          .thinking = has("think") || has("reasoning") || has("begin_of_thought")};
}

absl::StatusOr<ModelFacts> ReadModelFacts(const std::string& path) {
  std::error_code error;
  // A config.json by name stands for its folder.
  if (const std::filesystem::path file(path); file.filename() == "config.json") {
    return ReadHfFacts(file.has_parent_path() ? file.parent_path().string() : ".");
  }
  const bool directory = std::filesystem::is_directory(path, error);
  return directory ? ReadHfFacts(path) : ReadGgufFacts(path);
}

}  // namespace phalanx
