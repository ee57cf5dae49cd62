// RoPE of a Hugging Face config, resolved into tables.
// source: transformers 5, modeling_rope_utils.py
#include <algorithm>
#include <cmath>
#include <initializer_list>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "base/hf_config.h"
#include "base/rope_scaling.h"
#include "base/status_macros.h"

namespace phalanx::internal {
namespace {

using nlohmann::json;

constexpr int kMaxContext = 1 << 30;
constexpr double kPi = 3.14159265358979323846;

// All that can stand beside a RoPE type; those that a type does not use are ignored, as transformers does.
constexpr std::string_view kKnownKeys[] = {
    "type",
    "rope_type",
    "rope_theta",
    "partial_rotary_factor",
    "factor",
    "original_max_position_embeddings",
    "attention_factor",
    "beta_fast",
    "beta_slow",
    "mscale",
    "mscale_all_dim",
    "truncate",
    "low_freq_factor",
    "high_freq_factor",
    "short_factor",
    "long_factor",
};

absl::Status CheckKnown(const JsonKeys& keys) {
  for (const auto& [key, value] : keys.object().items()) {
    if (value.is_null()) continue;
    if (std::find(std::begin(kKnownKeys), std::end(kKnownKeys), key) == std::end(kKnownKeys)) {
      return absl::UnimplementedError(absl::StrCat(keys.Name(key), " is ", ShowJson(value),
                                                   ": this setting of RoPE is not known and not supported"));
    }
  }
  return absl::OkStatus();
}

// An attention factor may be anything positive; the divisors are per frequency.
struct Scaling {
  const JsonKeys& keys;  // of rope_scaling or rope_parameters
  ModelConfig& model;
  int rotary_dim = 0;
  double theta = 0;
  int original = 0;  // original_max_position_embeddings
};

// `factor`, or how many times the context is the original one.
absl::StatusOr<double> Factor(const Scaling& s) {
  double factor = static_cast<double>(s.model.context_length) / s.original;
  PHX_RETURN_IF_ERROR(s.keys.OptionalPositive("factor", &factor));
  return factor;
}

absl::Status Llama3(const Scaling& s, RopeConfig* rope) {
  double factor = 0, low = 0, high = 0;
  PHX_RETURN_IF_ERROR(s.keys.Positive("factor", &factor));
  PHX_RETURN_IF_ERROR(s.keys.Positive("low_freq_factor", &low));
  PHX_RETURN_IF_ERROR(s.keys.Positive("high_freq_factor", &high));
  if (high <= low) {
    return s.keys.Bad("high_freq_factor", *s.keys.Find("high_freq_factor"),
                      absl::StrCat("above low_freq_factor, ", low));
  }
  for (int i = 0; i < s.rotary_dim / 2; ++i) {
    const double wavelength = 2 * kPi * std::pow(s.theta, 2.0 * i / s.rotary_dim);
    double divisor = 1;
    if (wavelength > s.original / low) {
      divisor = factor;
    } else if (wavelength >= s.original / high) {
      const double smooth = (s.original / wavelength - low) / (high - low);
      divisor = 1 / ((1 - smooth) / factor + smooth);
    }
    rope->freq_factors.push_back(static_cast<float>(divisor));
  }
  s.model.rope_scaling = RopeScaling::kLlama3;
  s.model.rope_factor = factor;
  return absl::OkStatus();
}

absl::Status Yarn(const Scaling& s, RopeConfig* rope) {
  PHX_ASSIGN_OR_RETURN(const double factor, Factor(s));
  double mscale = 0, mscale_all_dim = 0, beta_fast = 32, beta_slow = 1;
  bool truncate = true;
  // 0 stands for none, as in transformers.
  for (const auto& [key, out] :
       {std::pair{"mscale", &mscale}, std::pair{"mscale_all_dim", &mscale_all_dim}}) {
    const json* value = s.keys.Find(key);
    if (value != nullptr && !(value->is_number() && value->get<double>() == 0)) {
      PHX_RETURN_IF_ERROR(s.keys.Positive(key, out));
    }
  }
  PHX_RETURN_IF_ERROR(s.keys.OptionalPositive("beta_fast", &beta_fast));
  PHX_RETURN_IF_ERROR(s.keys.OptionalPositive("beta_slow", &beta_slow));
  PHX_RETURN_IF_ERROR(s.keys.OptionalBool("truncate", &truncate));
  if (beta_fast < beta_slow) {
    return absl::InvalidArgumentError(absl::StrCat(s.keys.Name("beta_fast"), " is ", beta_fast,
                                                   ", must be at least beta_slow, ", beta_slow));
  }
  if (s.theta <= 1) {
    return absl::InvalidArgumentError(
        absl::StrCat(s.keys.Name("rope_theta"), " is ", s.theta, ", must be above 1 for YaRN"));
  }
  double attention = mscale > 0 && mscale_all_dim > 0
                         ? YarnScale(factor, mscale) / YarnScale(factor, mscale_all_dim)
                         : YarnScale(factor, 1);
  PHX_RETURN_IF_ERROR(s.keys.OptionalPositive("attention_factor", &attention));
  rope->attention_factor = static_cast<float>(attention);

  rope->freq_factors = YarnDivisors({.rotary_dim = s.rotary_dim,
                                     .theta = s.theta,
                                     .factor = factor,
                                     .original = static_cast<double>(s.original),
                                     .beta_fast = beta_fast,
                                     .beta_slow = beta_slow,
                                     .truncate = truncate});
  s.model.rope_scaling = RopeScaling::kYarn;
  s.model.rope_factor = factor;
  if (s.model.mla && mscale_all_dim > 0) {
    const double scale = YarnScale(factor, mscale_all_dim);
    s.model.softmax_factor = scale * scale;
  }
  return absl::OkStatus();
}

absl::Status ReadFactors(const Scaling& s, std::string_view key, std::vector<float>* out) {
  const size_t count = static_cast<size_t>(s.rotary_dim) / 2;
  const std::string must = absl::StrCat("an array of ", count, " finite numbers above 0, one a frequency");
  const json* values = s.keys.Find(key);
  if (values == nullptr) return s.keys.Missing(key, must);
  if (!values->is_array()) return s.keys.Bad(key, *values, must);
  if (values->size() != count) {
    return absl::InvalidArgumentError(
        absl::StrCat(s.keys.Name(key), " has ", values->size(), " elements, must be ", must));
  }
  for (size_t i = 0; i < count; ++i) {
    const json& value = (*values)[i];
    const double number = value.is_number() ? value.get<double>() : 0;
    const auto factor = static_cast<float>(number);
    if (!std::isfinite(factor) || factor <= 0) {
      return s.keys.Bad(absl::StrCat(std::string(key), "[", i, "]"), value, "a finite number above 0");
    }
    out->push_back(factor);
  }
  return absl::OkStatus();
}

absl::Status LongRope(const Scaling& s, RopeConfig* rope) {
  PHX_ASSIGN_OR_RETURN(const double factor, Factor(s));
  double attention = 1;
  if (factor > 1) {
    if (s.original < 2) {
      return absl::InvalidArgumentError(absl::StrCat(s.keys.Name("original_max_position_embeddings"), " is ",
                                                     s.original, ", must be at least 2 for LongRoPE"));
    }
    attention = LongRopeAttention(factor, s.original);
  }
  PHX_RETURN_IF_ERROR(s.keys.OptionalPositive("attention_factor", &attention));
  rope->attention_factor = static_cast<float>(attention);
  RopeConfig longer = *rope;
  PHX_RETURN_IF_ERROR(ReadFactors(s, "short_factor", &rope->freq_factors));
  PHX_RETURN_IF_ERROR(ReadFactors(s, "long_factor", &longer.freq_factors));
  s.model.rope = {*rope, longer};
  s.model.rope_scaling = RopeScaling::kLongRope;
  s.model.rope_factor = factor;
  return absl::OkStatus();
}

// rope_scaling, else rope_parameters; an empty object where there is neither.
absl::StatusOr<const json*> RopeObject(const JsonKeys& config, std::string* key) {
  static const json* const kNone = new json(json::object());
  for (const char* name : {"rope_scaling", "rope_parameters"}) {
    *key = name;
    const json* value = config.Find(name);
    if (value == nullptr) continue;
    if (!value->is_object()) return config.Bad(name, *value, "an object");
    if (!value->empty()) return value;
  }
  return kNone;
}

}  // namespace

absl::Status ReadHfRope(const JsonKeys& config, bool is_phi3, ModelConfig& model) {
  std::string object_key;
  PHX_ASSIGN_OR_RETURN(const json* object, RopeObject(config, &object_key));
  const JsonKeys keys(*object, config.file(), object_key);
  PHX_RETURN_IF_ERROR(CheckKnown(keys));

  // What stands inside the object goes before what stands beside it.
  RopeConfig rope;
  PHX_RETURN_IF_ERROR(config.OptionalPositive("rope_theta", &rope.theta));
  PHX_RETURN_IF_ERROR(keys.OptionalPositive("rope_theta", &rope.theta));
  double partial = 1;
  PHX_RETURN_IF_ERROR(config.OptionalPositive("partial_rotary_factor", &partial));
  PHX_RETURN_IF_ERROR(keys.OptionalPositive("partial_rotary_factor", &partial));
  if (partial > 1 || (partial != 1 && !is_phi3)) {
    return absl::Status(partial > 1 ? absl::StatusCode::kInvalidArgument : absl::StatusCode::kUnimplemented,
                        absl::StrCat(config.Name("partial_rotary_factor"), " is ", partial, ", must be ",
                                     is_phi3 ? "above 0 and at most 1" : "1 for this architecture"));
  }
  rope.rotary_dim = model.mla ? model.mla->rope_dim : static_cast<int>(model.key_dim * partial);
  if (rope.rotary_dim < 2 || rope.rotary_dim % 2 != 0) {
    return absl::InvalidArgumentError(absl::StrCat(config.file(), ": ", rope.rotary_dim,
                                                   " rotating channels a head, must be an even number"));
  }
  if (model.mla) {
    rope.interleaved = true;
    PHX_RETURN_IF_ERROR(config.OptionalBool("rope_interleave", &rope.interleaved));
  }

  std::string type = "default";
  PHX_RETURN_IF_ERROR(keys.OptionalString("type", &type));
  PHX_RETURN_IF_ERROR(keys.OptionalString("rope_type", &type));
  if (type == "default") {
    model.rope = {std::move(rope)};
    return absl::OkStatus();
  }

  Scaling scaling{keys, model, rope.rotary_dim, rope.theta};
  scaling.original = is_phi3 ? 4096 : model.context_length;
  PHX_RETURN_IF_ERROR(
      keys.OptionalInt("original_max_position_embeddings", 1, kMaxContext, &scaling.original));
  PHX_RETURN_IF_ERROR(
      config.OptionalInt("original_max_position_embeddings", 1, kMaxContext, &scaling.original));
  if (is_phi3 && (type == "longrope" || type == "su")) {
    PHX_RETURN_IF_ERROR(LongRope(scaling, &rope));
  } else if (!is_phi3 && (type == "llama3" || type == "yarn")) {
    PHX_RETURN_IF_ERROR(type == "yarn" ? Yarn(scaling, &rope) : Llama3(scaling, &rope));
    model.rope = {std::move(rope)};
  } else {
    return keys.Unsupported(keys.Find("rope_type") != nullptr ? "rope_type" : "type", json(type),
                            is_phi3 ? "default, longrope" : "default, llama3, yarn");
  }
  model.original_context_length = scaling.original;
  return absl::OkStatus();
}

}  // namespace phalanx::internal
