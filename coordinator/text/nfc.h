// Unicode normalisation form C, as Hugging Face's tokenizers has it (its tables are of Unicode 9.0).
#pragma once

#include <string>
#include <string_view>

namespace phalanx {

// `text`, valid UTF-8, in NFC: in `*storage`, or `text` itself where nothing changes. O(n log n).
std::string_view NormalizeNfc(std::string_view text, std::string* storage);

}  // namespace phalanx
