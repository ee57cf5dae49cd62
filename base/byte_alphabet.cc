#include "base/byte_alphabet.h"

namespace phalanx {
namespace {

constexpr int kAlphabetEnd = 0x100 + 68;

// byte -> code point
std::array<int, 256> CodePointOfByte() {
  std::array<int, 256> table{};
  int next = 0x100;
  for (int b = 0; b < 256; ++b) {
    const bool printable = (b >= '!' && b <= '~') || (b >= 0xa1 && b <= 0xac) || b >= 0xae;
    table[static_cast<size_t>(b)] = printable ? b : next++;
  }
  return table;
}

// code point -> byte, -1 where a code point stands for none
std::array<int, kAlphabetEnd> ByteOfCodePoint() {
  std::array<int, kAlphabetEnd> table;
  table.fill(-1);
  const std::array<int, 256> code_points = CodePointOfByte();
  for (size_t b = 0; b < 256; ++b) table[static_cast<size_t>(code_points[b])] = static_cast<int>(b);
  return table;
}

}  // namespace

std::optional<std::string> BytesOfPiece(std::string_view piece) {
  static const std::array<int, kAlphabetEnd> kTable = ByteOfCodePoint();
  std::string out;
  out.reserve(piece.size());
  for (size_t i = 0; i < piece.size();) {
    // The alphabet ends below U+0800: one or two bytes a character.
    const auto lead = static_cast<unsigned char>(piece[i]);
    int code_point = -1;
    if (lead < 0x80) {
      code_point = lead;
      i += 1;
    } else if (lead >= 0xc2 && lead < 0xe0 && i + 1 < piece.size() &&
               (static_cast<unsigned char>(piece[i + 1]) & 0xc0) == 0x80) {
      code_point = (lead & 0x1f) << 6 | (static_cast<unsigned char>(piece[i + 1]) & 0x3f);
      i += 2;
    }
    if (code_point < 0 || code_point >= kAlphabetEnd || kTable[static_cast<size_t>(code_point)] < 0) {
      return std::nullopt;
    }
    out.push_back(static_cast<char>(kTable[static_cast<size_t>(code_point)]));
  }
  return out;
}

std::string BytesOrPiece(std::string_view piece) { return BytesOfPiece(piece).value_or(std::string(piece)); }

const std::array<std::string, 256>& ByteAlphabet() {
  static const std::array<std::string, 256> kAlphabet = [] {
    std::array<std::string, 256> out;
    const std::array<int, 256> code_points = CodePointOfByte();
    for (size_t b = 0; b < 256; ++b) {
      const int c = code_points[b];
      if (c >= 0x80) {
        out[b].push_back(static_cast<char>(0xc0 | c >> 6));
        out[b].push_back(static_cast<char>(0x80 | (c & 0x3f)));
      } else {
        out[b].push_back(static_cast<char>(c));
      }
    }
    return out;
  }();
  return kAlphabet;
}

}  // namespace phalanx
