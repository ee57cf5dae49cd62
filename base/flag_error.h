// What is wrong with a command line, in one line. Header only, so that base/ itself needs no CLI11.
#pragma once

#include <CLI/CLI.hpp>
#include <string>

#include "absl/strings/str_cat.h"

namespace phalanx {

// CLI11's words; where they say of a value only that it is none, what would be right.
inline std::string ExplainFlagError(const CLI::App& app, const CLI::Error& error) {
  if (dynamic_cast<const CLI::ConversionError*>(&error) == nullptr) return error.what();
  for (const CLI::App* part : app.get_subcommands([](const CLI::App*) { return true; })) {
    if (std::string text = ExplainFlagError(*part, error); text != error.what()) return text;
  }
  for (const CLI::Option* option : app.get_options()) {
    const std::string type = option->get_type_name();
    const bool whole = type.rfind("INT", 0) == 0 || type.rfind("UINT", 0) == 0;
    if (option->results().size() != 1 || (!whole && type.rfind("FLOAT", 0) != 0)) continue;
    const std::string& value = option->results()[0];
    if (error.what() != absl::StrCat("Could not convert: ", option->get_name(), " = ", value)) continue;
    const size_t digits = value.find_first_not_of("+-");
    const bool is_whole = digits != std::string::npos && digits <= 1 &&
                          value.find_first_not_of("0123456789", digits) == std::string::npos;
    return absl::StrCat(option->get_name(), " is '", value, "'; it must be ",
                        !whole                 ? "a number"
                        : !is_whole            ? "a whole number"
                        : value.front() == '-' ? "a larger number"
                                               : "a smaller number");
  }
  return error.what();
}

}  // namespace phalanx
