// Strings of the Jinja subset: UTF-8 that knows which of its bytes a user wrote.
#pragma once

#include <cstddef>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

namespace phalanx::jinja {

class Text;

// Bytes with their origin, appended to in amortised constant time a byte.
class TextBuilder {
 public:
  void Append(std::string_view bytes, bool user);
  void Append(const Text& text);
  void Reserve(size_t bytes) { bytes_.reserve(bytes); }
  size_t size() const { return bytes_.size(); }
  const std::string& bytes() const { return bytes_; }
  // Where the origin changes, ascending: the bytes before the first are the template's, those up to the
  // second a user's, and so on.
  const std::vector<size_t>& borders() const { return borders_; }
  std::string TakeBytes() && { return std::move(bytes_); }
  Text Build() &&;

 private:
  friend class Text;
  std::string bytes_;
  std::vector<size_t> borders_;
  bool growable_ = false;  // made by Text::Concat: only one thread holds it
};

// Immutable and cheap to copy and to cut: parts share the bytes of the whole. Not to be shared between
// threads when it comes from Concat.
class Text {
 public:
  Text() = default;
  Text(std::string bytes, bool user);

  std::string_view view() const {
    return buffer_ == nullptr ? std::string_view()
                              : std::string_view(buffer_->bytes_).substr(begin_, end_ - begin_);
  }
  size_t size() const { return end_ - begin_; }
  bool empty() const { return begin_ == end_; }
  // Whether a user wrote any byte of it.
  bool has_user() const;
  // From byte `begin`, at most `bytes` of them.
  Text Sub(size_t begin, size_t bytes = std::string_view::npos) const;
  // HTML that escaping leaves as it is, which Jinja calls Markup; parts of it are, too.
  bool is_markup() const { return markup_; }
  Text AsMarkup() const {
    Text text = *this;
    text.markup_ = true;
    return text;
  }
  Text AsPlain() const {
    Text text = *this;
    text.markup_ = false;
    return text;
  }
  // `part` must be a view into view().
  Text Sub(std::string_view part) const {
    return Sub(part.empty() ? 0 : static_cast<size_t>(part.data() - view().data()), part.size());
  }
  // Takes the time of copying `b` alone when `a` ends where its bytes end, as in repeated appending.
  static Text Concat(const Text& a, const Text& b);

 private:
  friend class TextBuilder;
  std::shared_ptr<TextBuilder> buffer_;
  size_t begin_ = 0, end_ = 0;
  bool markup_ = false;
};

}  // namespace phalanx::jinja
