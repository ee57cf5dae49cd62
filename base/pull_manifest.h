// The note that a pull leaves in a model's directory: which files were verified, so that the next pull need
// not hash them again. Pure.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <string_view>

#include "absl/status/statusor.h"
#include "base/file_hash.h"

namespace phalanx {

// Its name there.
inline constexpr std::string_view kManifestName = ".phalanx-pull.json";

struct ManifestEntry {
  int64_t size = 0;
  int64_t mtime_ns = 0;  // since 1970; a file that was written since has another
  FileHash hash;         // kNone: the hub gave none, only the size was checked

  bool operator==(const ManifestEntry&) const = default;
};

struct Manifest {
  std::string repository, revision, commit;
  std::map<std::string, ManifestEntry> files;  // by path
};

std::string RenderManifest(const Manifest& manifest);

// InvalidArgument naming `where` for what RenderManifest does not write.
absl::StatusOr<Manifest> ParseManifest(std::string_view text, const std::string& where);

}  // namespace phalanx
