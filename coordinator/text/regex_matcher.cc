#include "coordinator/text/regex_matcher.h"

#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>

#include <algorithm>
#include <chrono>
#include <functional>
#include <utility>

#include "absl/strings/str_cat.h"
#include "base/status_macros.h"
#include "base/strings.h"
#include "coordinator/text/ruby_regex.h"
#include "coordinator/text/unicode.h"

namespace phalanx {
namespace {

// Far above what the patterns of tokenizers need for a match, and below what is felt.
constexpr uint32_t kMatchLimit = 1'000'000;
constexpr uint32_t kHeapLimitKib = 64 << 10;
constexpr size_t kJitStackBytes = 1 << 20;
// A pattern may look at all that follows from every place: then the clock decides. So much, and for each
// byte.
constexpr std::chrono::milliseconds kPatience(2000);
constexpr std::chrono::microseconds kPatienceByte(1);
constexpr size_t kWindow = 256;  // places to begin at, in bytes, between looks at the clock

struct FreePcre2 {
  void operator()(pcre2_code* code) const { pcre2_code_free(code); }
  void operator()(pcre2_match_data* data) const { pcre2_match_data_free(data); }
  void operator()(pcre2_compile_context* context) const { pcre2_compile_context_free(context); }
  void operator()(pcre2_match_context* context) const { pcre2_match_context_free(context); }
  void operator()(pcre2_jit_stack* stack) const { pcre2_jit_stack_free(stack); }
};

std::string Pcre2Message(int error) {
  PCRE2_UCHAR message[256];
  pcre2_get_error_message(error, message, sizeof(message));
  return reinterpret_cast<const char*>(message);
}

// Calls `piece` for the matches that `find` gives, and what is between. find(from, &begin, &end): the first
// match at or after `from`; false if there is none. As the iterators of regex libraries: an empty match right
// behind another match does not count.
template <typename FindNext>
absl::Status Iterate(std::string_view text, FindNext find, Matcher::Piece piece) {
  size_t done = 0, from = 0, last_end = std::string_view::npos;
  while (from <= text.size()) {
    size_t begin = 0, end = 0;
    PHX_ASSIGN_OR_RETURN(const bool found, find(from, &begin, &end));
    if (!found) break;
    if (begin == end && end == last_end) {
      from = end + (end < text.size() ? DecodeUtf8(text.data() + end).bytes : 1);
      continue;
    }
    if (begin > done) piece(done, begin, false);
    piece(begin, end, true);
    done = from = last_end = end;
  }
  if (done < text.size()) piece(done, text.size(), false);
  return absl::OkStatus();
}

class Pcre2Matcher : public Matcher {
 public:
  absl::Status Compile(std::string_view regex) {
    regex_ = regex;
    PHX_ASSIGN_OR_RETURN(const std::string pattern, Pcre2FromRuby(regex));
    std::unique_ptr<pcre2_compile_context, FreePcre2> newline(pcre2_compile_context_create(nullptr));
    pcre2_set_newline(newline.get(), PCRE2_NEWLINE_LF);
    int error = 0;
    PCRE2_SIZE offset = 0;
    code_.reset(pcre2_compile(reinterpret_cast<PCRE2_SPTR>(pattern.data()), pattern.size(),
                              PCRE2_UTF | PCRE2_UCP | PCRE2_MULTILINE | PCRE2_USE_OFFSET_LIMIT, &error,
                              &offset, newline.get()));
    if (code_ == nullptr) {
      return absl::InvalidArgumentError(
          absl::StrCat("regular expression ", Quote(regex_), ": ", Pcre2Message(error)));
    }
    context_.reset(pcre2_match_context_create(nullptr));
    pcre2_set_match_limit(context_.get(), kMatchLimit);
    pcre2_set_heap_limit(context_.get(), kHeapLimitKib);
    // Without JIT, where it is not to be had, matching is the same and slower.
    pcre2_jit_compile(code_.get(), PCRE2_JIT_COMPLETE);
    return absl::OkStatus();
  }

  absl::Status Find(std::string_view text, Piece piece) const override {
    std::unique_ptr<pcre2_match_data, FreePcre2> match(pcre2_match_data_create(1, nullptr));
    std::unique_ptr<pcre2_match_context, FreePcre2> context(pcre2_match_context_copy(context_.get()));
    std::unique_ptr<pcre2_jit_stack, FreePcre2> stack(
        pcre2_jit_stack_create(32 << 10, kJitStackBytes, nullptr));
    if (stack != nullptr) pcre2_jit_stack_assign(context.get(), nullptr, stack.get());
    const auto try_match = [&](size_t from, uint32_t options) {
      return pcre2_match(code_.get(), reinterpret_cast<PCRE2_SPTR>(text.data()), text.size(), from,
                         PCRE2_NO_UTF_CHECK | options, match.get(), context.get());
    };
    const auto fail = [&](size_t at, const std::string& why) {
      return absl::InvalidArgumentError(
          absl::StrCat("regular expression ", Quote(regex_), " at offset ", at, " of the text: ", why));
    };
    const auto until = std::chrono::steady_clock::now() + kPatience + kPatienceByte * text.size();
    const auto find = [&](size_t from, size_t* begin, size_t* end) -> absl::StatusOr<bool> {
      int found = PCRE2_ERROR_NOMATCH;
      while (found == PCRE2_ERROR_NOMATCH && from <= text.size()) {
        size_t window_end = std::min(from + kWindow, text.size());  // of a character or the text
        while (window_end < text.size() && (static_cast<unsigned char>(text[window_end]) & 0xc0) == 0x80)
          ++window_end;
        pcre2_set_offset_limit(context.get(), window_end);
        found = try_match(from, 0);
        if (found == PCRE2_ERROR_JIT_STACKLIMIT) found = try_match(from, PCRE2_NO_JIT);
        if (found < 0 && found != PCRE2_ERROR_NOMATCH) return fail(from, Pcre2Message(found));
        from = window_end == text.size() ? text.size() + 1 : window_end;
        if (std::chrono::steady_clock::now() > until) return fail(from, "takes too long");
      }
      if (found == PCRE2_ERROR_NOMATCH) return false;
      const PCRE2_SIZE* ends = pcre2_get_ovector_pointer(match.get());
      *begin = ends[0];
      *end = ends[1];
      return true;
    };
    return Iterate(text, find, piece);
  }

 private:
  std::string regex_;
  std::unique_ptr<pcre2_code, FreePcre2> code_;
  std::unique_ptr<pcre2_match_context, FreePcre2> context_;
};

class SubstringMatcher : public Matcher {
 public:
  explicit SubstringMatcher(std::string_view what) : what_(what), searcher_(what_.begin(), what_.end()) {}
  absl::Status Find(std::string_view text, Piece piece) const override {
    const auto find = [&](size_t from, size_t* begin, size_t* end) -> absl::StatusOr<bool> {
      const auto at = std::search(text.begin() + static_cast<ptrdiff_t>(from), text.end(), searcher_);
      if (at == text.end() && !what_.empty()) return false;
      *begin = static_cast<size_t>(at - text.begin());
      *end = *begin + what_.size();
      return true;
    };
    return Iterate(text, find, piece);
  }

 private:
  const std::string what_;
  const std::boyer_moore_horspool_searcher<std::string::const_iterator> searcher_;
};

}  // namespace

absl::StatusOr<std::unique_ptr<Matcher>> RegexMatcher(std::string_view regex) {
  auto matcher = std::make_unique<Pcre2Matcher>();
  PHX_RETURN_IF_ERROR(matcher->Compile(regex));
  return matcher;
}

std::unique_ptr<Matcher> StringMatcher(std::string_view what) {
  return std::make_unique<SubstringMatcher>(what);
}

}  // namespace phalanx
