// Values as Python prints them.
#include <charconv>
#include <cmath>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "base/status_macros.h"
#include "coordinator/text/jinja_unicode.h"
#include "coordinator/text/jinja_value.h"
#include "coordinator/text/utf8.h"

namespace phalanx::jinja {
namespace {

void AppendStringRepr(std::string_view s, std::string* out) {
  const char quote =
      s.find('\'') != std::string_view::npos && s.find('"') == std::string_view::npos ? '"' : '\'';
  out->push_back(quote);
  for (size_t at = 0; at < s.size();) {
    const size_t bytes = NextUtf8(s.substr(at)).bytes;
    const uint32_t c = CodePoint(s.substr(at));
    if (c == static_cast<uint32_t>(quote) || c == '\\') {
      out->push_back('\\');
      out->push_back(static_cast<char>(c));
    } else if (c == '\n') {
      out->append("\\n");
    } else if (c == '\r') {
      out->append("\\r");
    } else if (c == '\t') {
      out->append("\\t");
    } else if (IsPrintable(c)) {
      out->append(s.substr(at, bytes));
    } else if (c < 0x100) {
      out->append(absl::StrFormat("\\x%02x", c));
    } else if (c < 0x10000) {
      out->append(absl::StrFormat("\\u%04x", c));
    } else {
      out->append(absl::StrFormat("\\U%08x", c));
    }
    at += bytes;
  }
  out->push_back(quote);
}

absl::Status AppendRepr(const Value& value, std::string* out);

absl::Status AppendItems(const std::vector<Value>& items, std::string* out) {
  for (size_t i = 0; i < items.size(); ++i) {
    if (i > 0) out->append(", ");
    PHX_RETURN_IF_ERROR(AppendRepr(items[i], out));
  }
  return absl::OkStatus();
}

absl::Status AppendRepr(const Value& value, std::string* out) {
  if (out->size() > static_cast<size_t>(kMaxStringBytes)) {
    return absl::ResourceExhaustedError(absl::StrCat("a string above ", kMaxStringBytes, " bytes"));
  }
  if (value.is_none()) {
    out->append("None");
  } else if (value.is_undefined()) {
    out->append("Undefined");
  } else if (const bool* b = value.boolean()) {
    out->append(*b ? "True" : "False");
  } else if (const int64_t* i = value.integer()) {
    absl::StrAppend(out, *i);
  } else if (const BigInt* big = value.big()) {
    out->append(big->digits);
  } else if (const double* real = value.real()) {
    out->append(FloatText(*real));
  } else if (const Text* text = value.text()) {
    AppendStringRepr(text->view(), out);
  } else if (const Dict* dict = value.dict()) {
    out->push_back('{');
    for (size_t n = 0; n < dict->entries.size(); ++n) {
      if (n > 0) out->append(", ");
      PHX_RETURN_IF_ERROR(AppendRepr(dict->entries[n].first, out));
      out->append(": ");
      PHX_RETURN_IF_ERROR(AppendRepr(dict->entries[n].second, out));
    }
    out->push_back('}');
  } else if (value.is_list(List::Kind::kList)) {
    out->push_back('[');
    PHX_RETURN_IF_ERROR(AppendItems(value.list()->items, out));
    out->push_back(']');
  } else if (value.is_list(List::Kind::kTuple)) {
    out->push_back('(');
    PHX_RETURN_IF_ERROR(AppendItems(value.list()->items, out));
    out->append(value.list()->items.size() == 1 ? ",)" : ")");
  } else {
    return absl::UnimplementedError(absl::StrCat("a ", value.kind(), " as text"));
  }
  return absl::OkStatus();
}

}  // namespace

std::string FloatText(double v) {
  if (std::isnan(v)) return "nan";
  if (std::isinf(v)) return v > 0 ? "inf" : "-inf";
  char buffer[64];
  const auto end = std::to_chars(buffer, buffer + sizeof buffer, v, std::chars_format::scientific).ptr;
  const std::string_view text(buffer, static_cast<size_t>(end - buffer));  // [-]d[.ddd]e[+-]dd
  const size_t e = text.find('e');
  int exponent = 0;
  const size_t sign = text[e + 1] == '+' ? 1 : 0;
  std::from_chars(text.data() + e + 1 + sign, end, exponent);
  if (exponent < -4 || exponent >= 16) {
    return absl::StrFormat("%s%s%02d", std::string(text.substr(0, e + 1)), exponent < 0 ? "-" : "+",
                           std::abs(exponent));
  }
  std::string digits;
  for (const char c : text.substr(0, e)) {
    if (c >= '0' && c <= '9') digits.push_back(c);
  }
  std::string out = std::signbit(v) ? "-" : "";
  if (exponent < 0) return out + "0." + std::string(static_cast<size_t>(-exponent - 1), '0') + digits;
  const auto whole = static_cast<size_t>(exponent) + 1;
  if (digits.size() <= whole) return out + digits + std::string(whole - digits.size(), '0') + ".0";
  return out + digits.substr(0, whole) + "." + digits.substr(whole);
}

absl::StatusOr<Text> ToText(const Value& value) {
  if (value.text() != nullptr) return *value.text();
  if (value.is_undefined()) return Text();
  return ReprText(value);
}

absl::StatusOr<Text> ReprText(const Value& value) {
  std::string out;
  PHX_RETURN_IF_ERROR(AppendRepr(value, &out));
  return Text(std::move(out), value.HasUser());
}

}  // namespace phalanx::jinja
