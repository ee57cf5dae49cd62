#include "coordinator/text/jinja_unicode.h"

#include <algorithm>
#include <iterator>

#include "coordinator/text/jinja_unicode_tables.h"
#include "coordinator/text/jinja_value.h"
#include "coordinator/text/utf8.h"

namespace phalanx::jinja {
namespace {

template <size_t kSize>
const CaseSpecial* FindSpecial(const CaseSpecial (&table)[kSize], uint32_t c) {
  const auto it = std::lower_bound(std::begin(table), std::end(table), c,
                                   [](const CaseSpecial& s, uint32_t code) { return s.from < code; });
  return it != std::end(table) && it->from == c ? it : nullptr;
}

template <size_t kSize>
uint32_t FindRun(const CaseRun (&table)[kSize], uint32_t c) {
  // Runs with a step of 2 may lie in each other, so that the one before may hold `c`, too.
  auto it = std::upper_bound(std::begin(table), std::end(table), c,
                             [](uint32_t code, const CaseRun& r) { return code < r.first; });
  for (int back = 0; back < 2 && it != std::begin(table); ++back) {
    --it;
    if (c <= it->last && (c - it->first) % it->step == 0) return c + static_cast<uint32_t>(it->delta);
  }
  return c;
}

void Append(const CaseSpecial& special, std::string* out) {
  for (const uint32_t to : special.to) {
    if (to != 0) AppendCodePoint(to, out);
  }
}

void AppendUpper(uint32_t c, std::string* out) {
  if (const CaseSpecial* s = FindSpecial(kUpperSpecials, c)) return Append(*s, out);
  AppendCodePoint(FindRun(kUpperRuns, c), out);
}

void AppendTitle(uint32_t c, std::string* out) {
  if (const CaseSpecial* s = FindSpecial(kTitleSpecials, c)) return Append(*s, out);
  AppendUpper(c, out);
}

void AppendLower(uint32_t c, bool ends_word, std::string* out) {
  if (c == 0x3a3 && ends_word) return AppendCodePoint(0x3c2, out);
  if (const CaseSpecial* s = FindSpecial(kLowerSpecials, c)) return Append(*s, out);
  AppendCodePoint(FindRun(kLowerRuns, c), out);
}

}  // namespace

bool HasCase(uint32_t c) {
  return FindSpecial(kUpperSpecials, c) != nullptr || FindSpecial(kLowerSpecials, c) != nullptr ||
         FindRun(kUpperRuns, c) != c || FindRun(kLowerRuns, c) != c;
}

bool IsUpper(uint32_t c) { return FindSpecial(kLowerSpecials, c) != nullptr || FindRun(kLowerRuns, c) != c; }

bool IsPrintable(uint32_t c) {
  const auto it = std::upper_bound(std::begin(kUnprintable), std::end(kUnprintable), c,
                                   [](uint32_t code, const CodeRange& r) { return code < r.first; });
  return it == std::begin(kUnprintable) || c > std::prev(it)->last;
}

Text InCase(const Text& text, Case to) {
  const std::string_view in = text.view();
  std::string out;
  out.reserve(in.size());
  bool in_word = false;  // the last character has case
  for (size_t at = 0; at < in.size();) {
    const uint32_t c = CodePoint(in.substr(at));
    at += NextUtf8(in.substr(at)).bytes;
    // Capital sigma takes its final form at the end of a word.
    const auto ends_word = [&] { return in_word && (at >= in.size() || !HasCase(CodePoint(in.substr(at)))); };
    switch (to) {
      case Case::kUpper:
        AppendUpper(c, &out);
        break;
      case Case::kLower:
        AppendLower(c, c == 0x3a3 && ends_word(), &out);
        break;
      case Case::kCapitalized:
        if (out.empty()) {
          AppendTitle(c, &out);
        } else {
          AppendLower(c, c == 0x3a3 && ends_word(), &out);
        }
        break;
      case Case::kTitle:
        if (in_word) {
          AppendLower(c, c == 0x3a3 && ends_word(), &out);
        } else {
          AppendTitle(c, &out);
        }
        break;
      case Case::kSwapped:
        if (IsUpper(c)) {
          AppendLower(c, c == 0x3a3 && ends_word(), &out);
        } else {
          AppendUpper(c, &out);
        }
        break;
    }
    in_word = (to != Case::kUpper && HasCase(c));
  }
  const Text cased(std::move(out), text.has_user());
  return text.is_markup() ? cased.AsMarkup() : cased;
}

}  // namespace phalanx::jinja
