#include "coordinator/text/pretokenizer.h"

#include <algorithm>
#include <nlohmann/json.hpp>
#include <utility>

#include "absl/strings/str_cat.h"
#include "base/status_macros.h"
#include "base/strings.h"
#include "coordinator/text/regex_matcher.h"
#include "coordinator/text/splitters.h"

namespace phalanx {

// Each stage cuts what the one before left, and sees nothing beyond its piece.
struct Pretokenizer::Stage {
  // What becomes of matches and of what lies between.
  enum class Behavior { kIsolated, kRemoved, kMergedWithPrevious, kMergedWithNext, kContiguous };

  bool add_prefix_space = false;     // before anything else
  std::unique_ptr<Matcher> matcher;  // null: no cut
  Behavior behavior = Behavior::kIsolated;
  bool invert = false;  // matches and what lies between change places
};

namespace {

using nlohmann::json;

struct Span {
  size_t begin, end;
  bool is_match;
};

// The pieces of all spans, in order, for the behaviours that join some (as normalizer.rs of tokenizers has
// it).
template <typename Behavior>
std::vector<Span> Join(const std::vector<Span>& spans, Behavior behavior) {
  std::vector<Span> pieces;
  bool previous = false;  // whether the span before was a match
  if (behavior == Behavior::kMergedWithNext) {
    for (auto span = spans.rbegin(); span != spans.rend(); ++span) {
      if (span->is_match && !previous && !pieces.empty()) {
        pieces.back().begin = span->begin;
      } else {
        pieces.push_back(*span);
      }
      previous = span->is_match;
    }
    std::reverse(pieces.begin(), pieces.end());
    return pieces;
  }
  for (const Span& span : spans) {
    const bool join =
        behavior == Behavior::kContiguous ? span.is_match == previous : span.is_match && !previous;
    if (join && !pieces.empty()) {
      pieces.back().end = span.end;
    } else {
      pieces.push_back(span);
    }
    previous = span.is_match;
  }
  return pieces;
}

// Absent or null: `value` stays.
absl::Status ReadBool(const json& spec, const char* key, const std::string& where, bool* value) {
  const auto it = spec.find(key);
  if (it == spec.end() || it->is_null()) return absl::OkStatus();
  if (!it->is_boolean()) {
    return absl::InvalidArgumentError(absl::StrCat(where, ".", key, " must be true or false"));
  }
  *value = it->get<bool>();
  return absl::OkStatus();
}

absl::StatusOr<std::unique_ptr<Matcher>> ReadPattern(const json& spec, const std::string& where) {
  const auto pattern = spec.find("pattern");
  if (pattern != spec.end() && pattern->is_object() && pattern->size() == 1) {
    const json& value = pattern->begin().value();
    if (value.is_string() && pattern->begin().key() == "String") {
      return StringMatcher(value.get_ref<const std::string&>());
    }
    if (value.is_string() && pattern->begin().key() == "Regex") {
      const auto& regex = value.get_ref<const std::string&>();
      if (auto known = KnownMatcher(regex)) return known;
      auto matcher = RegexMatcher(regex);
      if (!matcher.ok()) {
        return absl::Status(matcher.status().code(),
                            absl::StrCat(where, ".pattern: ", matcher.status().message()));
      }
      return matcher;
    }
  }
  return absl::InvalidArgumentError(
      absl::StrCat(where, ".pattern must be {\"Regex\": a string} or {\"String\": a string}"));
}

}  // namespace

Pretokenizer::Pretokenizer() = default;
Pretokenizer::~Pretokenizer() = default;

absl::Status Pretokenizer::Split(std::string_view text, Word word) const { return SplitFrom(0, text, word); }

absl::Status Pretokenizer::SplitFrom(size_t index, std::string_view text, Word word) const {
  if (text.empty()) return absl::OkStatus();
  if (index == stages_.size()) {
    word(text);
    return absl::OkStatus();
  }
  const Stage& stage = stages_[index];
  std::string prefixed;
  if (stage.add_prefix_space && text[0] != ' ') {
    prefixed = absl::StrCat(" ", ToAbsl(text));
    text = prefixed;
  }
  if (stage.matcher == nullptr) return SplitFrom(index + 1, text, word);
  absl::Status status;
  const bool last = index + 1 == stages_.size();
  const auto pass_on = [&](size_t begin, size_t end) {
    if (begin == end) return;
    if (last) {
      word(text.substr(begin, end - begin));
    } else if (status.ok()) {
      status = SplitFrom(index + 1, text.substr(begin, end - begin), word);
    }
  };
  if (stage.behavior == Stage::Behavior::kIsolated) {
    PHX_RETURN_IF_ERROR(
        stage.matcher->Find(text, [&](size_t begin, size_t end, bool) { pass_on(begin, end); }));
    return status;
  }
  if (stage.behavior == Stage::Behavior::kRemoved) {
    PHX_RETURN_IF_ERROR(stage.matcher->Find(text, [&](size_t begin, size_t end, bool is_match) {
      if (is_match == stage.invert) pass_on(begin, end);
    }));
    return status;
  }
  std::vector<Span> spans;
  PHX_RETURN_IF_ERROR(stage.matcher->Find(text, [&](size_t begin, size_t end, bool is_match) {
    spans.push_back({begin, end, is_match != stage.invert});
  }));
  for (const Span& piece : Join(spans, stage.behavior)) pass_on(piece.begin, piece.end);
  return status;
}

absl::StatusOr<std::unique_ptr<Pretokenizer>> Pretokenizer::Create(std::string_view name) {
  // As the models' own tokenizer.json has it.
  static const auto* const kPatterns = new std::vector<std::pair<std::string_view, std::vector<const char*>>>{
      {"smollm", {nullptr, kGpt2Regex}},  // Digits(individual), then ByteLevel
      {"gpt-2", {kGpt2Regex}},
      {"llama-bpe", {kCl100kRegex}},
      {"llama3", {kCl100kRegex}},
      {"llama-v3", {kCl100kRegex}},
      {"dbrx", {kCl100kRegex}},
      {"gpt-4o", {kO200kRegex}},
      {"qwen2", {kQwen2Regex}},
      {"deepseek-r1-qwen", {kQwen2Regex}},
      {"deepseek-v3", {kDeepSeekDigitsRegex, kDeepSeekCjkRegex, kDeepSeekWordsRegex}},
  };
  std::string supported;
  for (const auto& [known, patterns] : *kPatterns) {
    if (name == known) {
      std::unique_ptr<Pretokenizer> made(new Pretokenizer());
      for (const char* pattern : patterns) {
        Stage stage;
        stage.matcher = pattern == nullptr ? DigitsMatcher(true) : KnownMatcher(pattern);
        made->stages_.push_back(std::move(stage));
      }
      return made;
    }
    absl::StrAppend(&supported, supported.empty() ? "'" : ", '", ToAbsl(known), "'");
  }
  return absl::UnimplementedError(
      absl::StrCat("pre-tokenizer ", Quote(name), " is not supported; supported: ", supported));
}

absl::Status Pretokenizer::AddStage(const json& spec, const std::string& where, bool last) {
  const json type = spec.is_object() ? spec.value("type", json()) : json();
  if (!type.is_string()) return absl::InvalidArgumentError(absl::StrCat(where, ".type must be a string"));
  const auto& name = type.get_ref<const std::string&>();
  Stage stage;
  if (name == "ByteLevel") {
    if (!last) return absl::UnimplementedError(absl::StrCat(where, ": 'ByteLevel' must be the last stage"));
    stage.add_prefix_space = true;
    bool use_regex = true;
    PHX_RETURN_IF_ERROR(ReadBool(spec, "add_prefix_space", where, &stage.add_prefix_space));
    PHX_RETURN_IF_ERROR(ReadBool(spec, "use_regex", where, &use_regex));
    if (use_regex) stage.matcher = KnownMatcher(kGpt2Regex);
  } else if (name == "Digits") {
    bool individual = false;
    PHX_RETURN_IF_ERROR(ReadBool(spec, "individual_digits", where, &individual));
    stage.matcher = DigitsMatcher(individual);
  } else if (name == "Split") {
    PHX_ASSIGN_OR_RETURN(stage.matcher, ReadPattern(spec, where));
    PHX_RETURN_IF_ERROR(ReadBool(spec, "invert", where, &stage.invert));
    const json behavior = spec.value("behavior", json());
    static constexpr std::pair<const char*, Stage::Behavior> kBehaviors[] = {
        {"Isolated", Stage::Behavior::kIsolated},
        {"Removed", Stage::Behavior::kRemoved},
        {"MergedWithPrevious", Stage::Behavior::kMergedWithPrevious},
        {"MergedWithNext", Stage::Behavior::kMergedWithNext},
        {"Contiguous", Stage::Behavior::kContiguous},
    };
    const auto* known = std::find_if(std::begin(kBehaviors), std::end(kBehaviors),
                                     [&](const auto& entry) { return behavior == entry.first; });
    if (known == std::end(kBehaviors)) {
      return absl::InvalidArgumentError(absl::StrCat(
          where,
          ".behavior must be 'Isolated', 'Removed', 'MergedWithPrevious', 'MergedWithNext' or 'Contiguous'"));
    }
    stage.behavior = known->second;
  } else {
    return absl::UnimplementedError(absl::StrCat(
        where, ": stage ", Quote(name), " is not supported; supported: 'Split', 'Digits', 'ByteLevel'"));
  }
  stages_.push_back(std::move(stage));
  return absl::OkStatus();
}

absl::StatusOr<std::unique_ptr<Pretokenizer>> Pretokenizer::FromJson(const json& spec) {
  std::unique_ptr<Pretokenizer> made(new Pretokenizer());
  bool byte_level = false;
  if (spec.is_object() && spec.value("type", json()) == "Sequence") {
    const auto list = spec.find("pretokenizers");
    if (list == spec.end() || !list->is_array()) {
      return absl::InvalidArgumentError("pre_tokenizer.pretokenizers must be an array");
    }
    for (size_t i = 0; i < list->size(); ++i) {
      const bool last = i + 1 == list->size();
      PHX_RETURN_IF_ERROR(
          made->AddStage((*list)[i], absl::StrCat("pre_tokenizer.pretokenizers[", i, "]"), last));
      byte_level = last && (*list)[i].value("type", json()) == "ByteLevel";
    }
  } else if (!spec.is_null()) {
    PHX_RETURN_IF_ERROR(made->AddStage(spec, "pre_tokenizer", true));
    byte_level = spec.value("type", json()) == "ByteLevel";
  }
  if (!byte_level) {
    return absl::UnimplementedError(
        "pre_tokenizer does not end with 'ByteLevel': only byte-level BPE is supported");
  }
  return made;
}

}  // namespace phalanx
