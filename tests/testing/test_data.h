// Data too large for the repository, in folders that PHALANX_TEST_DATA names.
#pragma once

#include <cstdlib>
#include <filesystem>
#include <optional>
#include <string>
#include <string_view>
#include <system_error>

namespace phalanx {

// The file or folder `relative` in the first folder of PHALANX_TEST_DATA (a list with colons between) that
// has it.
inline std::optional<std::string> FindTestData(const std::string& relative) {
  const char* list = std::getenv("PHALANX_TEST_DATA");
  std::string_view rest = list == nullptr ? "" : list;
  while (!rest.empty()) {
    const size_t colon = rest.find(':');
    const std::string_view folder = rest.substr(0, colon);
    rest = colon == std::string_view::npos ? std::string_view() : rest.substr(colon + 1);
    if (folder.empty()) continue;
    const std::filesystem::path path = std::filesystem::path(folder) / relative;
    std::error_code error;
    if (std::filesystem::exists(path, error)) return path.string();
  }
  return std::nullopt;
}

// Why a test that needs `relative` is skipped.
inline std::string MissingTestData(const std::string& relative) {
  const char* list = std::getenv("PHALANX_TEST_DATA");
  return "no " + relative +
         (list == nullptr ? " : PHALANX_TEST_DATA is not set to a list of folders with colons between"
                          : " in the folders of PHALANX_TEST_DATA=" + std::string(list));
}

}  // namespace phalanx
