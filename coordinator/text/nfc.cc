#include "coordinator/text/nfc.h"

#include <algorithm>
#include <cstdint>
#include <iterator>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "coordinator/text/unicode.h"

namespace phalanx {
namespace {
#include "coordinator/text/nfc_tables.inc"

// Hangul syllables compose by arithmetic (Unicode 3.12).
constexpr uint32_t kSBase = 0xac00, kLBase = 0x1100, kVBase = 0x1161, kTBase = 0x11a7;
constexpr uint32_t kLCount = 19, kVCount = 21, kTCount = 28, kSCount = kLCount * kVCount * kTCount;
constexpr uint32_t kMask = (1u << 21) - 1;
// Below, every character is as it should be and composes with none before it.
constexpr uint32_t kFirstUnsafe = 0x300;

struct Step {
  uint32_t first, second;  // second is 0 where a single character stands for it
};

void AppendUtf8(uint32_t c, std::string* out) {
  if (c < 0x80) {
    out->push_back(static_cast<char>(c));
    return;
  }
  if (c < 0x800) {
    out->push_back(static_cast<char>(0xc0 | c >> 6));
  } else {
    if (c < 0x10000) {
      out->push_back(static_cast<char>(0xe0 | c >> 12));
    } else {
      out->push_back(static_cast<char>(0xf0 | c >> 18));
      out->push_back(static_cast<char>(0x80 | (c >> 12 & 0x3f)));
    }
    out->push_back(static_cast<char>(0x80 | (c >> 6 & 0x3f)));
  }
  out->push_back(static_cast<char>(0x80 | (c & 0x3f)));
}

struct Marked {
  uint32_t code_point;
  uint8_t combining_class;
};

class Tables {
 public:
  static const Tables& Get() {
    static const auto* const kTables = new Tables();
    return *kTables;
  }

  // Whether text may be cut before `c`: it is in NFC by itself, and composes with nothing before it.
  bool IsSafe(uint32_t c) const { return c < kFirstUnsafe || !unsafe_[c]; }

  uint8_t Class(uint32_t c) const {
    const auto* after = std::upper_bound(std::begin(kClassChanges), std::end(kClassChanges), c << 8 | 0xff);
    return static_cast<uint8_t>(*(after - 1) & 0xff);
  }

  void Decompose(uint32_t c, std::vector<Marked>* out) const {
    if (c - kSBase < kSCount) {
      const uint32_t s = c - kSBase;
      out->push_back({kLBase + s / (kVCount * kTCount), 0});
      out->push_back({kVBase + s % (kVCount * kTCount) / kTCount, 0});
      if (s % kTCount != 0) out->push_back({kTBase + s % kTCount, 0});
      return;
    }
    const auto it = steps_.find(c);
    if (it == steps_.end()) {
      out->push_back({c, Class(c)});
      return;
    }
    Decompose(it->second.first, out);  // at most four deep
    if (it->second.second != 0) out->push_back({it->second.second, Class(it->second.second)});
  }

  // 0 if they do not compose.
  uint32_t Compose(uint32_t a, uint32_t b) const {
    if (a - kLBase < kLCount && b - kVBase < kVCount) {
      return kSBase + ((a - kLBase) * kVCount + (b - kVBase)) * kTCount;
    }
    if (a - kSBase < kSCount && (a - kSBase) % kTCount == 0 && b > kTBase && b < kTBase + kTCount) {
      return a + (b - kTBase);
    }
    const auto it = compositions_.find(static_cast<uint64_t>(a) << 21 | b);
    return it == compositions_.end() ? 0 : it->second;
  }

 private:
  Tables() : unsafe_(0x110000) {
    for (const uint64_t entry : kDecompositions) {
      const auto c = static_cast<uint32_t>(entry >> 42 & kMask), b = static_cast<uint32_t>(entry & kMask);
      const auto a = static_cast<uint32_t>(entry >> 21 & kMask);
      steps_[c] = {a, b};
      if (entry >> 63 != 0) {
        compositions_[static_cast<uint64_t>(a) << 21 | b] = c;
        unsafe_[b] = true;
      } else {
        unsafe_[c] = true;
      }
    }
    for (uint32_t i = 1; i < kVCount + 1; ++i) unsafe_[kVBase + i - 1] = true;
    for (uint32_t i = 1; i < kTCount; ++i) unsafe_[kTBase + i] = true;
    for (const uint32_t* change = std::begin(kClassChanges); change != std::end(kClassChanges); ++change) {
      if ((*change & 0xff) == 0) continue;
      for (uint32_t c = *change >> 8; c < change[1] >> 8; ++c) unsafe_[c] = true;
    }
    // What begins with an unsafe character when taken apart may not be cut off either.
    for (bool changed = true; changed;) {
      changed = false;
      for (const auto& [c, step] : steps_) {
        if (!unsafe_[step.first] || unsafe_[c]) continue;
        unsafe_[c] = changed = true;
      }
    }
  }

  absl::flat_hash_map<uint32_t, Step> steps_;
  absl::flat_hash_map<uint64_t, uint32_t> compositions_;
  std::vector<bool> unsafe_;
};

// Appends the NFC of a piece; `buffer` is scratch space.
void NormalizePiece(const Tables& tables, std::string_view piece, std::vector<Marked>& buffer,
                    std::string* out) {
  buffer.clear();
  for (size_t at = 0; at < piece.size();) {
    const Character c = DecodeUtf8(piece.data() + at);
    tables.Decompose(c.code_point, &buffer);
    at += c.bytes;
  }
  for (auto at = buffer.begin(); at != buffer.end();) {
    if (at->combining_class == 0) {
      ++at;
      continue;
    }
    const auto end = std::find_if(at, buffer.end(), [](const Marked& m) { return m.combining_class == 0; });
    std::stable_sort(at, end,
                     [](const Marked& a, const Marked& b) { return a.combining_class < b.combining_class; });
    at = end;
  }
  // Each mark joins the last starter unless something between them blocks it (Unicode 3.11, D115).
  size_t kept = 0;  // buffer[0, kept) is what came of what was read
  size_t starter = buffer.size();
  int last_class = -1;  // of what was kept behind the starter; -1: nothing
  for (const Marked mark : buffer) {
    if (starter < kept && last_class < static_cast<int>(mark.combining_class)) {
      if (const uint32_t whole = tables.Compose(buffer[starter].code_point, mark.code_point); whole != 0) {
        buffer[starter].code_point = whole;
        continue;
      }
    }
    if (mark.combining_class == 0) {
      starter = kept;
      last_class = -1;
    } else {
      last_class = mark.combining_class;
    }
    buffer[kept++] = mark;
  }
  for (size_t i = 0; i < kept; ++i) AppendUtf8(buffer[i].code_point, out);
}

}  // namespace

std::string_view NormalizeNfc(std::string_view text, std::string* storage) {
  const Tables& tables = Tables::Get();
  std::vector<Marked> buffer;
  size_t copied = 0;  // text[0, copied) is in *storage
  size_t cut = 0;     // the last safe character
  bool changed = false;
  for (size_t at = 0; at < text.size();) {
    const Character c = DecodeUtf8(text.data() + at);
    if (tables.IsSafe(c.code_point)) {
      cut = at;
      at += c.bytes;
      continue;
    }
    size_t end = at + c.bytes;
    while (end < text.size()) {
      const Character next = DecodeUtf8(text.data() + end);
      if (tables.IsSafe(next.code_point)) break;
      end += next.bytes;
    }
    if (!changed) storage->clear();
    changed = true;
    storage->append(text, copied, cut - copied);
    NormalizePiece(tables, text.substr(cut, end - cut), buffer, storage);
    copied = cut = at = end;
  }
  if (!changed) return text;
  storage->append(text, copied);
  return *storage;
}

}  // namespace phalanx
