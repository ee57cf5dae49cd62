#include "coordinator/text/pretokenizer.h"

#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>

#include <string>
#include <utility>

#include "absl/strings/str_cat.h"
#include "base/status_macros.h"
#include "base/strings.h"

namespace phalanx {
namespace {

// White_Space as regex engines of tokenizers have it; PCRE2's own \s would add U+180E.
#define PHX_WS \
  "\\t-\\r \\x{85}\\x{a0}\\x{1680}\\x{2000}-\\x{200a}\\x{2028}\\x{2029}\\x{202f}\\x{205f}\\x{3000}"

constexpr const char* kGpt2 = "'s|'t|'re|'ve|'m|'ll|'d| ?\\p{L}+| ?\\p{N}+| ?[^" PHX_WS
                              "\\p{L}\\p{N}]+|[" PHX_WS "]+(?![^" PHX_WS "])|[" PHX_WS "]+";

// Each pattern cuts what the one before left, and sees nothing beyond its piece; a match is a piece, and so
// is what lies between two.
struct Recipe {
  const char* name;
  std::vector<const char*> patterns;
};

const std::vector<Recipe>& Recipes() {
  static const auto* const kRecipes = new std::vector<Recipe>{
      {"smollm", {"\\p{N}", kGpt2}},  // SmolLM's tokenizer.json: Digits(individual), then ByteLevel
  };
  return *kRecipes;
}

#undef PHX_WS

// Far above what any of the patterns needs for a match (they backtrack by one character at most).
constexpr uint32_t kMatchLimit = 1000;
constexpr uint32_t kHeapLimitKib = 1024;

struct FreePcre2 {
  void operator()(pcre2_code* code) const { pcre2_code_free(code); }
  void operator()(pcre2_match_data* data) const { pcre2_match_data_free(data); }
  void operator()(pcre2_match_context* context) const { pcre2_match_context_free(context); }
};

std::string Pcre2Message(int error) {
  PCRE2_UCHAR message[256];
  pcre2_get_error_message(error, message, sizeof(message));
  return reinterpret_cast<const char*>(message);
}

class RegexPretokenizer : public Pretokenizer {
 public:
  static absl::StatusOr<std::unique_ptr<Pretokenizer>> Compile(const Recipe& recipe) {
    auto made = std::make_unique<RegexPretokenizer>();
    for (const char* pattern : recipe.patterns) {
      int error = 0;
      PCRE2_SIZE offset = 0;
      made->patterns_.emplace_back(pcre2_compile(reinterpret_cast<PCRE2_SPTR>(pattern), PCRE2_ZERO_TERMINATED,
                                                 PCRE2_UTF, &error, &offset, nullptr));
      if (made->patterns_.back() == nullptr) {
        return absl::InternalError(absl::StrCat("pre-tokenizer '", recipe.name, "': pattern ", pattern,
                                                " at ", offset, ": ", Pcre2Message(error)));
      }
    }
    made->context_.reset(pcre2_match_context_create(nullptr));
    pcre2_set_match_limit(made->context_.get(), kMatchLimit);
    pcre2_set_heap_limit(made->context_.get(), kHeapLimitKib);
    return made;
  }

  absl::Status Split(std::string_view text,
                     const std::function<void(std::string_view)>& word) const override {
    std::unique_ptr<pcre2_match_data, FreePcre2> match(pcre2_match_data_create(1, nullptr));
    return SplitFrom(0, text, word, match.get());
  }

 private:
  absl::Status SplitFrom(size_t stage, std::string_view text,
                         const std::function<void(std::string_view)>& word, pcre2_match_data* match) const {
    if (text.empty()) return absl::OkStatus();
    if (stage == patterns_.size()) {
      word(text);
      return absl::OkStatus();
    }
    size_t at = 0;
    while (at < text.size()) {
      const int found =
          pcre2_match(patterns_[stage].get(), reinterpret_cast<PCRE2_SPTR>(text.data()), text.size(), at,
                      PCRE2_NO_UTF_CHECK | PCRE2_NOTEMPTY, match, context_.get());
      if (found == PCRE2_ERROR_NOMATCH) break;
      if (found < 0) return absl::InternalError(absl::StrCat("pre-tokenizer: ", Pcre2Message(found)));
      const PCRE2_SIZE* ends = pcre2_get_ovector_pointer(match);
      const size_t begin = ends[0], end = ends[1];
      // The next stage uses the same match data: ends is not valid after these.
      PHX_RETURN_IF_ERROR(SplitFrom(stage + 1, text.substr(at, begin - at), word, match));
      PHX_RETURN_IF_ERROR(SplitFrom(stage + 1, text.substr(begin, end - begin), word, match));
      at = end;
    }
    return SplitFrom(stage + 1, text.substr(at), word, match);
  }

  std::vector<std::unique_ptr<pcre2_code, FreePcre2>> patterns_;
  std::unique_ptr<pcre2_match_context, FreePcre2> context_;
};

}  // namespace

absl::StatusOr<std::unique_ptr<Pretokenizer>> Pretokenizer::Create(std::string_view name) {
  std::string supported;
  for (const Recipe& recipe : Recipes()) {
    if (name == recipe.name) return RegexPretokenizer::Compile(recipe);
    absl::StrAppend(&supported, supported.empty() ? "'" : ", '", recipe.name, "'");
  }
  return absl::UnimplementedError(
      absl::StrCat("pre-tokenizer '", ToAbsl(name), "' is not supported; supported: ", supported));
}

}  // namespace phalanx
