#include "coordinator/text/jinja_text.h"

#include <algorithm>
#include <utility>

namespace phalanx::jinja {

void TextBuilder::Append(std::string_view bytes, bool user) {
  if (bytes.empty()) return;
  if (user != (borders_.size() % 2 == 1)) borders_.push_back(bytes_.size());
  bytes_.append(bytes);
}

void TextBuilder::Append(const Text& text) {
  if (text.empty()) return;
  const std::vector<size_t>& borders = text.buffer_->borders_;
  if (borders.empty()) return Append(text.view(), false);
  auto border = std::upper_bound(borders.begin(), borders.end(), text.begin_);
  const std::string_view bytes = text.buffer_->bytes_;
  for (size_t at = text.begin_; at < text.end_; ++border) {
    const bool user = (border - borders.begin()) % 2 == 1;
    const size_t end = border == borders.end() ? text.end_ : std::min(*border, text.end_);
    Append(bytes.substr(at, end - at), user);
    at = end;
    if (border == borders.end()) break;
  }
}

Text TextBuilder::Build() && {
  Text text;
  text.end_ = bytes_.size();
  if (text.end_ > 0) text.buffer_ = std::make_shared<TextBuilder>(std::move(*this));
  return text;
}

Text::Text(std::string bytes, bool user) : end_(bytes.size()) {
  if (bytes.empty()) return;
  buffer_ = std::make_shared<TextBuilder>();
  buffer_->bytes_ = std::move(bytes);
  if (user) buffer_->borders_.push_back(0);
}

bool Text::has_user() const {
  if (empty() || buffer_->borders_.empty()) return false;
  const std::vector<size_t>& borders = buffer_->borders_;
  const auto border = std::upper_bound(borders.begin(), borders.end(), begin_);
  return (border - borders.begin()) % 2 == 1 || (border != borders.end() && *border < end_);
}

Text Text::Sub(size_t begin, size_t bytes) const {
  Text part;
  part.markup_ = markup_;
  begin = std::min(begin, size());
  bytes = std::min(bytes, size() - begin);
  if (bytes == 0) return part;
  part.buffer_ = buffer_;
  part.begin_ = begin_ + begin;
  part.end_ = part.begin_ + bytes;
  return part;
}

Text Text::Concat(const Text& a, const Text& b) {
  if (a.empty()) return b.AsPlain();
  if (b.empty()) return a.AsPlain();
  Text sum = a.AsPlain();
  sum.end_ += b.size();
  if (a.buffer_ == b.buffer_ || !a.buffer_->growable_ || a.end_ != a.buffer_->bytes_.size()) {
    auto buffer = std::make_shared<TextBuilder>();
    buffer->Reserve(sum.size());
    buffer->Append(a);
    buffer->growable_ = true;
    sum.buffer_ = std::move(buffer);
    sum.begin_ = 0;
    sum.end_ = a.size() + b.size();
  }
  sum.buffer_->Append(b);
  return sum;
}

}  // namespace phalanx::jinja
