// GPT-2's byte alphabet, in which the vocabularies of byte-level BPE are written: printable Latin-1 bytes
// stand for themselves, the other 68 for U+0100 and up, in order.
#pragma once

#include <array>
#include <optional>
#include <string>
#include <string_view>

namespace phalanx {

// The bytes that a piece stands for; nothing if it has a character that is not of the alphabet.
std::optional<std::string> BytesOfPiece(std::string_view piece);

// As above, where a piece with any other character stands for itself, as in Hugging Face's byte-level
// decoder.
std::string BytesOrPiece(std::string_view piece);

// The UTF-8 of each byte's character.
const std::array<std::string, 256>& ByteAlphabet();

}  // namespace phalanx
