#include "coordinator/text/unicode.h"

#include <algorithm>
#include <iterator>
#include <map>
#include <string>

namespace phalanx {
namespace {
#include "coordinator/text/unicode_tables.inc"
}  // namespace

CharKinds::CharKinds() {
  std::map<std::string, uint8_t> known;
  const uint32_t* next = std::begin(kKindChanges);
  CharKind kind = kOther;
  for (uint32_t block = 0; block < block_of_.size(); ++block) {
    std::string kinds(256, '\0');
    for (uint32_t i = 0; i < 256; ++i) {
      if (next != std::end(kKindChanges) && *next >> 4 == (block << 8 | i)) {
        kind = static_cast<CharKind>(*next++ & 0xf);
      }
      kinds[i] = static_cast<char>(kind);
    }
    const auto [it, fresh] = known.emplace(kinds, static_cast<uint8_t>(known.size()));
    if (fresh) {
      for (const char k : kinds) blocks_.push_back(static_cast<CharKind>(k));
    }
    block_of_[block] = it->second;
  }
}

const CharKinds& CharKinds::Get() {
  static const auto* const kKinds = new CharKinds();
  return *kKinds;
}

bool IsWordCharacter(uint32_t code_point) {
  return (std::upper_bound(std::begin(kWordChanges), std::end(kWordChanges), code_point) -
          std::begin(kWordChanges)) %
             2 ==
         1;
}

}  // namespace phalanx
