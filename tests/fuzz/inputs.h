// Takes an input of a fuzzer apart.
#pragma once

#include <algorithm>
#include <cstdint>
#include <string_view>

namespace phalanx {

// Reads an input from its front. Beyond the end all is 0 and empty.
class Input {
 public:
  Input(const uint8_t* data, size_t size) : rest_(reinterpret_cast<const char*>(data), size) {}

  bool empty() const { return rest_.empty(); }
  uint8_t Byte() {
    const std::string_view byte = Take(1);
    return byte.empty() ? 0 : static_cast<uint8_t>(byte[0]);
  }
  std::string_view Take(size_t bytes) {
    const std::string_view taken = rest_.substr(0, bytes);
    rest_.remove_prefix(taken.size());
    return taken;
  }
  // Bytes behind their length, which is one byte, or two from 255 on.
  std::string_view Piece() {
    size_t size = Byte();
    if (size == 255) {
      size = Byte() * size_t{256};
      size += Byte();
    }
    return Take(size);
  }
  std::string_view Rest() { return Take(rest_.size()); }

 private:
  std::string_view rest_;
};

}  // namespace phalanx
