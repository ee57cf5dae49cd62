// quantization_config of a Hugging Face config, in the dialects of transformers, AutoAWQ, AutoGPTQ and
// compressed-tensors. Which matrices are quantised, the names of their tensors say: lists of modules that are
// not are not read.
#include <algorithm>
#include <string>
#include <string_view>

#include "absl/status/status.h"
#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "base/hf_config.h"
#include "base/status_macros.h"
#include "base/strings.h"

namespace phalanx::internal {
namespace {

using nlohmann::json;

constexpr int64_t kMaxSize = int64_t{1} << 30;

// The key must be absent or hold `only`.
absl::Status Only(const JsonKeys& keys, std::string_view key, const json& only) {
  const json* value = keys.Find(key);
  if (value == nullptr || *value == only) return absl::OkStatus();
  return keys.Unsupported(key, *value, ShowJson(only));
}

// Absent, null, false or empty.
absl::Status None(const JsonKeys& keys, std::string_view key) {
  const json* value = keys.Find(key);
  if (value == nullptr || *value == false || (value->is_structured() && value->empty())) {
    return absl::OkStatus();
  }
  return keys.Unsupported(key, *value, "no such key");
}

absl::Status ReadBlocks(const JsonKeys& keys, std::string_view key, const json& block, ModelConfig& model) {
  constexpr std::string_view kMust = "an array of two integers from 1 to 1073741824: rows and columns";
  if (!block.is_array() || block.size() != 2) return keys.Bad(key, block, kMust);
  Fp8Blocks blocks;
  int* const out[] = {&blocks.rows, &blocks.cols};
  for (size_t i = 0; i < 2; ++i) {
    const json& size = block[i];
    if (!size.is_number_integer() || size < 1 || size > kMaxSize) {
      return keys.Bad(absl::StrCat(ToAbsl(key), "[", i, "]"), size, kMust);
    }
    *out[i] = size.get<int>();
  }
  model.fp8 = blocks;
  return absl::OkStatus();
}

absl::Status ReadFp8(const JsonKeys& keys, ModelConfig& model) {
  PHX_RETURN_IF_ERROR(Only(keys, "fmt", "e4m3"));
  // Scales of activations are not used: activations are not rounded to FP8.
  if (const json* scheme = keys.Find("activation_scheme");
      scheme != nullptr && *scheme != "dynamic" && *scheme != "static") {
    return keys.Unsupported("activation_scheme", *scheme, "dynamic, static");
  }
  model.quantisation = Quantisation::kFp8;
  const json* block = keys.Find("weight_block_size");
  return block == nullptr ? absl::OkStatus() : ReadBlocks(keys, "weight_block_size", *block, model);
}

// One group of "Linear" in FP8; the ways in which scales are shared show in their shapes.
absl::Status ReadCompressedTensors(const JsonKeys& keys, ModelConfig& model) {
  PHX_RETURN_IF_ERROR(Only(keys, "format", "float-quantized"));
  PHX_RETURN_IF_ERROR(None(keys, "kv_cache_scheme"));
  const json* groups = keys.Find("config_groups");
  constexpr std::string_view kMust = "an object of groups with their weights' types";
  if (groups == nullptr) return keys.Missing("config_groups", kMust);
  if (!groups->is_object() || groups->empty()) return keys.Bad("config_groups", *groups, kMust);
  for (const auto& [name, group] : groups->items()) {
    const json* const weights = group.is_object() && group.contains("weights") ? &group["weights"] : nullptr;
    const std::string key = absl::StrCat("config_groups.", name, ".weights");
    if (weights == nullptr || !weights->is_object()) return keys.Missing(key, "an object");
    const JsonKeys of_weights(*weights, keys.file(), absl::StrCat("quantization_config.", key));
    PHX_RETURN_IF_ERROR(Only(of_weights, "type", "float"));
    PHX_RETURN_IF_ERROR(Only(of_weights, "num_bits", 8));
    std::string strategy = "tensor";
    PHX_RETURN_IF_ERROR(of_weights.OptionalString("strategy", &strategy));
    if (strategy == "block") {
      const json* block = of_weights.Find("block_structure");
      if (block == nullptr) return of_weights.Missing("block_structure", "an array of rows and columns");
      PHX_RETURN_IF_ERROR(ReadBlocks(of_weights, "block_structure", *block, model));
    } else if (strategy != "tensor" && strategy != "channel") {
      return of_weights.Unsupported("strategy", json(strategy), "tensor, channel, block");
    }
  }
  model.quantisation = Quantisation::kFp8;
  return absl::OkStatus();
}

absl::Status ReadInt4(const JsonKeys& keys, Quantisation kind, ModelConfig& model) {
  const char* bits_key = keys.Find("bits") == nullptr && keys.Find("w_bit") != nullptr ? "w_bit" : "bits";
  if (keys.Find(bits_key) == nullptr) return keys.Missing("bits", "4");
  PHX_RETURN_IF_ERROR(Only(keys, bits_key, 4));
  const char* group_key = keys.Find("group_size") == nullptr && keys.Find("q_group_size") != nullptr
                              ? "q_group_size"
                              : "group_size";
  Int4Groups int4;
  int64_t group_size = 128;
  if (const json* size = keys.Find(group_key); size != nullptr) {
    const bool valid = size->is_number_integer() && (*size == -1 || (*size >= 1 && *size <= kMaxSize));
    if (!valid) return keys.Bad(group_key, *size, "-1 (all columns are one group) or a number of columns");
    group_size = size->get<int64_t>();
  }
  int4.group_size = group_size == -1 ? 0 : static_cast<int>(group_size);
  if (kind == Quantisation::kAwq) {
    std::string version = "gemm";
    PHX_RETURN_IF_ERROR(keys.OptionalString("version", &version));
    if (absl::AsciiStrToLower(version) != "gemm") return keys.Unsupported("version", json(version), "gemm");
    PHX_RETURN_IF_ERROR(Only(keys, "zero_point", true));
  } else {
    std::string format = "gptq";
    PHX_RETURN_IF_ERROR(keys.OptionalString("checkpoint_format", &format));
    if (format != "gptq" && format != "gptq_v2") {
      return keys.Unsupported("checkpoint_format", json(format), "gptq, gptq_v2");
    }
    PHX_RETURN_IF_ERROR(None(keys, "is_marlin_format"));
    PHX_RETURN_IF_ERROR(None(keys, "dynamic"));
    PHX_RETURN_IF_ERROR(Only(keys, "pack_dtype", "int32"));
    // The first format keeps a zero less one.
    int4.zero_offset = format == "gptq" ? 1 : 0;
  }
  model.quantisation = kind;
  model.int4 = int4;
  return absl::OkStatus();
}

}  // namespace

absl::Status ReadHfQuantisation(const JsonKeys& config, ModelConfig& model) {
  const json* object = config.Find("quantization_config");
  if (object == nullptr) object = config.Find("compression_config");
  if (object == nullptr) return absl::OkStatus();
  if (!object->is_object()) return config.Bad("quantization_config", *object, "an object");
  const JsonKeys keys(*object, config.file(), "quantization_config");
  constexpr std::string_view kMethods = "fp8, awq, gptq, compressed-tensors";
  std::string method;
  PHX_RETURN_IF_ERROR(keys.OptionalString("quant_method", &method));
  if (keys.Find("quant_method") == nullptr) return keys.Missing("quant_method", kMethods);
  if (method == "fp8") {
    PHX_RETURN_IF_ERROR(ReadFp8(keys, model));
  } else if (method == "compressed-tensors") {
    PHX_RETURN_IF_ERROR(ReadCompressedTensors(keys, model));
  } else if (method == "awq") {
    PHX_RETURN_IF_ERROR(ReadInt4(keys, Quantisation::kAwq, model));
  } else if (method == "gptq") {
    PHX_RETURN_IF_ERROR(ReadInt4(keys, Quantisation::kGptq, model));
  } else {
    return keys.Unsupported("quant_method", json(method), kMethods);
  }
  // Blocks and groups of the common sizes are not cut; larger ones are, which is as right.
  constexpr int kMaxUnit = 256;
  const int unit = model.fp8 ? model.fp8->cols : model.int4 ? model.int4->group_size : 0;
  if (unit >= kFfnUnit && unit <= kMaxUnit) model.ffn_unit = unit;
  return absl::OkStatus();
}

}  // namespace phalanx::internal
