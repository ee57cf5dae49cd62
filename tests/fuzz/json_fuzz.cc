// JSON of any kind.
#include <cstdint>
#include <cstdlib>

#include "base/json_file.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const auto json = phalanx::ParseJson({reinterpret_cast<const char*>(data), size}, "input");
  if (!json.ok()) return 0;
  (void)phalanx::ShowJson(*json);
  // What was read once is read again, and is the same.
  const std::string text = json->dump();
  const auto again = phalanx::ParseJson(text, "again");
  if (!again.ok() || again->dump() != text) std::abort();
  return 0;
}
