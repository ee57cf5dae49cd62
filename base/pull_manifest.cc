#include "base/pull_manifest.h"

#include <nlohmann/json.hpp>

#include "absl/strings/str_cat.h"
#include "base/json_file.h"
#include "base/status_macros.h"

namespace phalanx {

using nlohmann::json;

std::string RenderManifest(const Manifest& manifest) {
  json files = json::object();
  for (const auto& [path, entry] : manifest.files) {
    files[path] = {{"size", entry.size}, {"mtime_ns", entry.mtime_ns}, {"hash", entry.hash.Text()}};
  }
  const json whole = {{"repository", manifest.repository},
                      {"revision", manifest.revision},
                      {"commit", manifest.commit},
                      {"files", std::move(files)}};
  // Paths of a hub may be no UTF-8; such an entry is then not found again, and its file hashed.
  return whole.dump(1, ' ', false, json::error_handler_t::replace) + "\n";
}

absl::StatusOr<Manifest> ParseManifest(std::string_view text, const std::string& where) {
  PHX_ASSIGN_OR_RETURN(const json whole, ParseJson(text, where));
  if (!whole.is_object()) {
    return absl::InvalidArgumentError(
        absl::StrCat(where, ": holds ", ShowJson(whole), ", must be an object"));
  }
  const JsonKeys keys(whole, where);
  Manifest manifest;
  PHX_RETURN_IF_ERROR(keys.OptionalString("repository", &manifest.repository));
  PHX_RETURN_IF_ERROR(keys.OptionalString("revision", &manifest.revision));
  PHX_RETURN_IF_ERROR(keys.OptionalString("commit", &manifest.commit));
  const json* files = keys.Find("files");
  if (files == nullptr) return keys.Missing("files", "an object of files");
  if (!files->is_object()) return keys.Bad("files", *files, "an object of files");
  for (const auto& [path, value] : files->items()) {
    const json* size = value.is_object() && value.contains("size") ? &value["size"] : nullptr;
    const json* mtime = value.is_object() && value.contains("mtime_ns") ? &value["mtime_ns"] : nullptr;
    if (size == nullptr || mtime == nullptr || !size->is_number_integer() || !mtime->is_number_integer()) {
      return keys.Bad("files", value, "objects with size and mtime_ns");
    }
    std::string hash;
    PHX_RETURN_IF_ERROR(JsonKeys(value, where, path).OptionalString("hash", &hash));
    manifest.files[path] = {size->get<int64_t>(), mtime->get<int64_t>(), FileHash::Parse(hash)};
  }
  return manifest;
}

}  // namespace phalanx
