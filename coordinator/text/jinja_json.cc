// JSON to values of templates and back, as Python's json module has it.
#include <algorithm>
#include <charconv>
#include <cmath>
#include <unordered_map>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "base/status_macros.h"
#include "base/strings.h"
#include "coordinator/text/jinja_value.h"
#include "coordinator/text/utf8.h"

namespace phalanx::jinja {
namespace {

constexpr int kMaxJsonDepth = 64;
constexpr size_t kMaxDigits = 4300;  // of an integer; Python has the same

class Reader {
 public:
  explicit Reader(std::string_view json) : json_(json) {}

  absl::StatusOr<Value> Run() {
    PHX_ASSIGN_OR_RETURN(Value value, ReadValue(0));
    SkipSpace();
    if (at_ < json_.size()) return Fail("more text behind the value");
    return value;
  }

 private:
  char Peek() const { return at_ < json_.size() ? json_[at_] : '\0'; }
  void SkipSpace() {
    while (at_ < json_.size() && (Peek() == ' ' || Peek() == '\n' || Peek() == '\r' || Peek() == '\t')) ++at_;
  }
  bool Skip(std::string_view word) {
    if (json_.substr(at_, word.size()) != word) return false;
    at_ += word.size();
    return true;
  }
  absl::Status Fail(const std::string& what) const {
    return absl::InvalidArgumentError(absl::StrCat(what, " at byte ", at_));
  }

  absl::StatusOr<Value> ReadValue(int depth);
  absl::StatusOr<Value> ReadNumber();
  absl::StatusOr<std::string> ReadString();
  absl::StatusOr<uint32_t> ReadHex4();
  absl::StatusOr<Value> ReadList(int depth);
  absl::StatusOr<Value> ReadDict(int depth);

  std::string_view json_;
  size_t at_ = 0;
};

absl::StatusOr<Value> Reader::ReadValue(int depth) {
  SkipSpace();
  if (depth > kMaxJsonDepth) return Fail(absl::StrCat("nested more than ", kMaxJsonDepth, " deep"));
  if (at_ == json_.size()) return Fail("a value is missing");
  const char c = Peek();
  if (c == '"') {
    PHX_ASSIGN_OR_RETURN(std::string text, ReadString());
    return Value::Str(std::move(text), /*user=*/true);
  }
  if (c == '[') return ReadList(depth);
  if (c == '{') return ReadDict(depth);
  if (c == '-' || (c >= '0' && c <= '9')) return ReadNumber();
  if (Skip("null")) return Value();
  if (Skip("true")) return Value::Bool(true);
  if (Skip("false")) return Value::Bool(false);
  return Fail("no JSON value");
}

absl::StatusOr<Value> Reader::ReadNumber() {
  const size_t begin = at_;
  const auto digits = [this] {
    const size_t from = at_;
    while (Peek() >= '0' && Peek() <= '9') ++at_;
    return at_ - from;
  };
  Skip("-");
  const bool zero = Peek() == '0';
  const size_t whole = digits();
  if (whole == 0) return Fail("a digit is missing");
  if (zero && whole > 1) return Fail("a number with a leading zero");
  bool real = false;
  if (Skip(".")) {
    real = true;
    if (digits() == 0) return Fail("a digit is missing");
  }
  if (Peek() == 'e' || Peek() == 'E') {
    real = true;
    ++at_;
    if (Peek() == '+' || Peek() == '-') ++at_;
    if (digits() == 0) return Fail("a digit is missing");
  }
  const std::string text(json_.substr(begin, at_ - begin));
  if (real) {
    double value = 0;
    if (!absl::SimpleAtod(text, &value)) return Fail("a number that cannot be read");
    return Value::Float(value);
  }
  int64_t value = 0;
  if (absl::SimpleAtoi(text, &value)) return Value::Int(value);
  if (whole > kMaxDigits) return Fail(absl::StrCat("a number of more than ", kMaxDigits, " digits"));
  return Value::Big(text);
}

absl::StatusOr<uint32_t> Reader::ReadHex4() {
  uint32_t value = 0;
  const std::string_view text = json_.substr(at_, 4);
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value, 16);
  if (error != std::errc() || end != text.data() + 4) return Fail("a bad \\u escape");
  at_ += 4;
  return value;
}

absl::StatusOr<std::string> Reader::ReadString() {
  ++at_;
  std::string out;
  while (true) {
    const size_t stop = json_.find_first_of(std::string_view("\"\\"), at_);
    if (stop == std::string_view::npos) return Fail("a string is not closed");
    for (; at_ < stop; ++at_) {
      if (static_cast<unsigned char>(json_[at_]) < 0x20) return Fail("a control character in a string");
      out.push_back(json_[at_]);
    }
    ++at_;
    if (json_[stop] == '"') return out;
    static constexpr std::string_view kNames = "\"\\/bfnrt", kValues = "\"\\/\b\f\n\r\t";
    const char escape = Peek();
    ++at_;
    if (const size_t known = kNames.find(escape); known != std::string_view::npos) {
      out.push_back(kValues[known]);
    } else if (escape == 'u') {
      PHX_ASSIGN_OR_RETURN(uint32_t code_point, ReadHex4());
      if (code_point >= 0xd800 && code_point < 0xdc00 && Skip("\\u")) {
        PHX_ASSIGN_OR_RETURN(const uint32_t low, ReadHex4());
        if (low < 0xdc00 || low >= 0xe000) return Fail("half a surrogate pair");
        code_point = 0x10000 + ((code_point - 0xd800) << 10) + (low - 0xdc00);
      } else if (code_point >= 0xd800 && code_point < 0xe000) {
        return Fail("half a surrogate pair");
      }
      AppendCodePoint(code_point, &out);
    } else {
      return Fail("a bad escape");
    }
  }
}

absl::StatusOr<Value> Reader::ReadList(int depth) {
  ++at_;
  std::vector<Value> items;
  SkipSpace();
  if (!Skip("]")) {
    while (true) {
      PHX_ASSIGN_OR_RETURN(Value item, ReadValue(depth + 1));
      items.push_back(std::move(item));
      SkipSpace();
      if (Skip("]")) break;
      if (!Skip(",")) return Fail("',' or ']' is missing");
    }
  }
  return Value::MakeList(std::move(items));
}

absl::StatusOr<Value> Reader::ReadDict(int depth) {
  ++at_;
  Dict dict;
  std::unordered_map<std::string, size_t> seen;
  SkipSpace();
  if (!Skip("}")) {
    while (true) {
      SkipSpace();
      if (Peek() != '"') return Fail("a key is missing");
      PHX_ASSIGN_OR_RETURN(std::string key, ReadString());
      SkipSpace();
      if (!Skip(":")) return Fail("':' is missing");
      PHX_ASSIGN_OR_RETURN(Value value, ReadValue(depth + 1));
      const auto [place, is_new] = seen.emplace(key, dict.entries.size());
      if (is_new) {
        dict.entries.emplace_back(Value::Str(std::move(key), /*user=*/true), std::move(value));
      } else {
        dict.entries[place->second].second = std::move(value);
      }
      SkipSpace();
      if (Skip("}")) break;
      if (!Skip(",")) return Fail("',' or '}' is missing");
    }
  }
  return Value::MakeDict(std::move(dict));
}

class Writer {
 public:
  explicit Writer(const JsonStyle& style) : style_(style) {}

  absl::Status Write(const Value& value, size_t level);
  std::string TakeText() { return std::move(out_); }

 private:
  void WriteString(std::string_view s);
  absl::StatusOr<std::string> Key(const Value& key) const;
  void NewLine(size_t level) {
    if (!style_.indent) return;
    out_.push_back('\n');
    for (size_t i = 0; i < level; ++i) out_.append(*style_.indent);
  }
  absl::Status CheckSize() const {
    if (out_.size() <= static_cast<size_t>(kMaxStringBytes)) return absl::OkStatus();
    return absl::ResourceExhaustedError(absl::StrCat("tojson: a string above ", kMaxStringBytes, " bytes"));
  }

  const JsonStyle& style_;
  std::string out_;
};

void Writer::WriteString(std::string_view s) {
  out_.push_back('"');
  for (size_t i = 0; i < s.size(); ++i) {
    const char c = s[i];
    static constexpr std::string_view kValues = "\"\\\n\r\t\b\f", kNames = "\"\\nrtbf";
    if (const size_t known = kValues.find(c); known != std::string_view::npos) {
      out_.push_back('\\');
      out_.push_back(kNames[known]);
    } else if (static_cast<unsigned char>(c) < 0x20) {
      out_.append(absl::StrFormat("\\u%04x", static_cast<unsigned char>(c)));
    } else if (style_.ensure_ascii && static_cast<unsigned char>(c) >= 0x80) {
      const uint32_t code_point = CodePoint(s.substr(i));
      i += NextUtf8(s.substr(i)).bytes - 1;
      if (code_point < 0x10000) {
        out_.append(absl::StrFormat("\\u%04x", code_point));
      } else {
        const uint32_t rest = code_point - 0x10000;
        out_.append(absl::StrFormat("\\u%04x\\u%04x", 0xd800 + (rest >> 10), 0xdc00 + (rest & 0x3ff)));
      }
    } else {
      out_.push_back(c);
    }
  }
  out_.push_back('"');
}

std::string JsonFloat(double v) {
  if (std::isnan(v)) return "NaN";
  if (std::isinf(v)) return v > 0 ? "Infinity" : "-Infinity";
  return FloatText(v);
}

absl::StatusOr<std::string> Writer::Key(const Value& key) const {
  if (key.text() != nullptr) return std::string(key.text()->view());
  if (key.is_none()) return std::string("null");
  if (key.boolean() != nullptr) return std::string(*key.boolean() ? "true" : "false");
  if (key.integer() != nullptr) return absl::StrCat(*key.integer());
  if (key.real() != nullptr) return JsonFloat(*key.real());
  return absl::InvalidArgumentError(absl::StrCat("tojson: a key that is a ", key.kind()));
}

absl::Status Writer::Write(const Value& value, size_t level) {
  PHX_RETURN_IF_ERROR(CheckSize());
  if (value.is_none()) {
    out_.append("null");
  } else if (const bool* b = value.boolean()) {
    out_.append(*b ? "true" : "false");
  } else if (const int64_t* i = value.integer()) {
    absl::StrAppend(&out_, *i);
  } else if (const BigInt* big = value.big()) {
    out_.append(big->digits);
  } else if (const double* real = value.real()) {
    out_.append(JsonFloat(*real));
  } else if (const Text* text = value.text()) {
    WriteString(text->view());
  } else if (const List* list = value.list();
             list != nullptr && (list->kind == List::Kind::kList || list->kind == List::Kind::kTuple)) {
    if (list->items.empty()) {
      out_.append("[]");
      return absl::OkStatus();
    }
    out_.push_back('[');
    for (size_t n = 0; n < list->items.size(); ++n) {
      if (n > 0) out_.append(style_.item_separator);
      NewLine(level + 1);
      PHX_RETURN_IF_ERROR(Write(list->items[n], level + 1));
    }
    NewLine(level);
    out_.push_back(']');
  } else if (const Dict* dict = value.dict()) {
    if (dict->entries.empty()) {
      out_.append("{}");
      return absl::OkStatus();
    }
    std::vector<std::pair<std::string, const Value*>> entries;
    for (const auto& [key, item] : dict->entries) {
      PHX_ASSIGN_OR_RETURN(std::string name, Key(key));
      entries.emplace_back(std::move(name), &item);
    }
    if (style_.sort_keys) {
      std::stable_sort(entries.begin(), entries.end(),
                       [](const auto& a, const auto& b) { return a.first < b.first; });
    }
    out_.push_back('{');
    for (size_t n = 0; n < entries.size(); ++n) {
      if (n > 0) out_.append(style_.item_separator);
      NewLine(level + 1);
      WriteString(entries[n].first);
      out_.append(style_.key_separator);
      PHX_RETURN_IF_ERROR(Write(*entries[n].second, level + 1));
    }
    NewLine(level);
    out_.push_back('}');
  } else {
    return absl::InvalidArgumentError(absl::StrCat("tojson: ", Describe(value), " has no form in JSON"));
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<Value> ParseJson(std::string_view json) {
  if (const size_t valid = ValidUtf8Prefix(json); valid < json.size()) {
    return absl::InvalidArgumentError(absl::StrCat("not valid UTF-8 at byte ", valid));
  }
  return Reader(json).Run();
}

absl::StatusOr<Text> ToJson(const Value& value, const JsonStyle& style) {
  Writer writer(style);
  PHX_RETURN_IF_ERROR(writer.Write(value, 0));
  std::string json = writer.TakeText();
  if (json.size() > static_cast<size_t>(kMaxStringBytes)) {
    return absl::ResourceExhaustedError(absl::StrCat("tojson: a string above ", kMaxStringBytes, " bytes"));
  }
  return Text(std::move(json), value.HasUser());
}

}  // namespace phalanx::jinja
