// What filters and methods do to strings. Parts of a string keep its origin.
#include <algorithm>
#include <limits>

#include "absl/strings/str_cat.h"
#include "base/status_macros.h"
#include "base/strings.h"
#include "coordinator/text/jinja_functions.h"
#include "coordinator/text/utf8.h"

namespace phalanx::jinja {
namespace {

absl::Status TooLong(std::string_view what) {
  return absl::ResourceExhaustedError(
      absl::StrCat(ToAbsl(what), ": a string above ", kMaxStringBytes, " bytes"));
}

// At white space, runs of which count as one.
absl::StatusOr<Value> SplitWords(const Text& text, int64_t most, bool from_right) {
  std::vector<Value> parts;
  std::string_view rest = Strip(text.view(), true, true);
  const auto is_space_at = [&](size_t at) { return IsSpace(CodePoint(rest.substr(at))); };
  while (!rest.empty()) {
    if (most >= 0 && static_cast<int64_t>(parts.size()) >= most) {
      // The last part keeps the white space at its outer end.
      const std::string_view all = text.view();
      const auto begin = static_cast<size_t>(rest.data() - all.data());
      parts.emplace_back(from_right ? text.Sub(0, begin + rest.size()) : text.Sub(begin));
      break;
    }
    if (from_right) {
      size_t begin = rest.size(), at = begin;
      while (at > 0) {
        --at;
        if ((static_cast<unsigned char>(rest[at]) & 0xc0) == 0x80) continue;
        if (is_space_at(at)) break;
        begin = at;
      }
      parts.emplace_back(text.Sub(rest.substr(begin)));
      rest = Strip(rest.substr(0, begin), false, true);
    } else {
      size_t end = 0;
      while (end < rest.size() && !is_space_at(end)) end += NextUtf8(rest.substr(end)).bytes;
      parts.emplace_back(text.Sub(rest.substr(0, end)));
      rest = Strip(rest.substr(end), true, false);
    }
  }
  if (from_right) std::reverse(parts.begin(), parts.end());
  return Value::MakeList(std::move(parts));
}

}  // namespace

absl::StatusOr<Value> StripText(const Text& text, bool left, bool right, const Value& chars, Budget* budget) {
  if (chars.is_none()) return Value(text.Sub(Strip(text.view(), left, right)));
  if (chars.text() == nullptr) return WrongType("strip", chars, "a str");
  const std::string_view part = Strip(text.view(), left, right, chars.text()->view());
  PHX_RETURN_IF_ERROR(budget->Charge(static_cast<int64_t>(text.size() - part.size()) *
                                     (1 + static_cast<int64_t>(chars.text()->size()) / 16)));
  return Value(text.Sub(part));
}

absl::StatusOr<Value> Split(const Text& text, const Value& separator, int64_t most, bool from_right,
                            Budget* budget) {
  PHX_RETURN_IF_ERROR(budget->Charge(static_cast<int64_t>(text.size())));
  if (separator.is_none()) return SplitWords(text, most, from_right);
  if (separator.text() == nullptr) return WrongType("split", separator, "a str");
  const std::string_view all = text.view(), by = separator.text()->view();
  if (by.empty()) return absl::InvalidArgumentError("split: empty separator");
  if (most < 0) most = std::numeric_limits<int64_t>::max();
  std::vector<Value> parts;
  if (from_right) {
    size_t end = all.size();
    while (static_cast<int64_t>(parts.size()) < most) {
      const size_t found = end < by.size() ? std::string_view::npos : all.rfind(by, end - by.size());
      if (found == std::string_view::npos) break;
      parts.emplace_back(text.Sub(found + by.size(), end - found - by.size()));
      end = found;
    }
    parts.emplace_back(text.Sub(0, end));
    std::reverse(parts.begin(), parts.end());
  } else {
    size_t at = 0;
    for (size_t found; static_cast<int64_t>(parts.size()) < most &&
                       (found = FindText(all, by, at)) != std::string_view::npos;
         at = found + by.size()) {
      parts.emplace_back(text.Sub(at, found - at));
    }
    parts.emplace_back(text.Sub(at));
  }
  PHX_RETURN_IF_ERROR(budget->Charge(static_cast<int64_t>(parts.size()) * 64));
  return Value::MakeList(std::move(parts));
}

absl::StatusOr<Value> SplitLines(const Text& text, bool keep_ends, Budget* budget) {
  std::vector<Value> lines;
  const std::string_view all = text.view();
  size_t begin = 0;
  for (size_t at = 0; at < all.size();) {
    const size_t bytes = NextUtf8(all.substr(at)).bytes;
    const uint32_t c = CodePoint(all.substr(at));
    const bool ends =
        (c >= 0x0a && c <= 0x0d) || (c >= 0x1c && c <= 0x1e) || c == 0x85 || c == 0x2028 || c == 0x2029;
    if (!ends) {
      at += bytes;
      continue;
    }
    const size_t end = at + (c == '\r' && all.substr(at + 1, 1) == "\n" ? 2 : bytes);
    lines.emplace_back(text.Sub(begin, (keep_ends ? end : at) - begin));
    begin = at = end;
  }
  if (begin < all.size()) lines.emplace_back(text.Sub(begin));
  PHX_RETURN_IF_ERROR(budget->Charge(static_cast<int64_t>(lines.size()) * 32));
  return Value::MakeList(std::move(lines));
}

absl::StatusOr<Value> Replace(const Text& text, const Text& old, const Text& by, int64_t most,
                              Budget* budget) {
  if (most < 0) most = std::numeric_limits<int64_t>::max();
  TextBuilder out;
  const std::string_view all = text.view();
  const auto put = [&](const Text& part) -> absl::Status {
    out.Append(part);
    return out.size() > static_cast<size_t>(kMaxStringBytes) ? TooLong("replace") : absl::OkStatus();
  };
  size_t at = 0;
  if (old.empty()) {  // before every character and at the end
    for (; at <= all.size() && most > 0; --most) {
      PHX_RETURN_IF_ERROR(put(by));
      if (at == all.size()) break;
      const size_t bytes = NextUtf8(all.substr(at)).bytes;
      out.Append(text.Sub(at, bytes));
      at += bytes;
    }
  } else {
    for (size_t found; most > 0 && (found = FindText(all, old.view(), at)) != std::string_view::npos;
         at = found + old.size(), --most) {
      PHX_RETURN_IF_ERROR(put(text.Sub(at, found - at)));
      PHX_RETURN_IF_ERROR(put(by));
    }
    if (at == 0) return Value(text);
  }
  PHX_RETURN_IF_ERROR(put(text.Sub(at)));
  PHX_RETURN_IF_ERROR(budget->Charge(static_cast<int64_t>(out.size())));
  return Value(std::move(out).Build());
}

absl::StatusOr<Value> Join(const std::vector<Value>& items, const Text& separator, bool only_strings,
                           Budget* budget) {
  TextBuilder out;
  for (size_t i = 0; i < items.size(); ++i) {
    if (i > 0) out.Append(separator);
    if (only_strings && items[i].text() == nullptr) return WrongType("join()", items[i], "a str");
    PHX_ASSIGN_OR_RETURN(const Text item, ToText(items[i]));
    out.Append(item);
    if (out.size() > static_cast<size_t>(kMaxStringBytes)) return TooLong("join");
  }
  PHX_RETURN_IF_ERROR(budget->Charge(static_cast<int64_t>(out.size())));
  return Value(std::move(out).Build());
}

}  // namespace phalanx::jinja
