// Messages as they come from a network.
#pragma once

#include <google/protobuf/stubs/logging.h>

#include <string_view>

namespace phalanx {

// Gives `use` the message that `bytes` are; false where they are none.
template <typename Message, typename Use>
bool With(std::string_view bytes, Use use) {
  // Protobuf's own complaints: there are many.
  static const auto silent = google::protobuf::SetLogHandler(nullptr);
  (void)silent;
  Message message;
  if (!message.ParseFromArray(bytes.data(), static_cast<int>(bytes.size()))) return false;
  use(message);
  return true;
}

}  // namespace phalanx
