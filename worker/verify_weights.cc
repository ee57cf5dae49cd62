#include "worker/verify_weights.h"

#include <spdlog/spdlog.h>

#include <algorithm>
#include <cstdint>
#include <filesystem>
#include <fstream>
#include <map>
#include <memory>
#include <optional>
#include <sstream>

#include "absl/status/statusor.h"
#include "absl/strings/str_cat.h"
#include "base/file_hash.h"
#include "base/mapped_file.h"
#include "base/pull_manifest.h"
#include "base/status_macros.h"

namespace phalanx {
namespace {

constexpr char kSumsName[] = "SHA256SUMS";
constexpr int64_t kPiece = int64_t{4} << 20;
constexpr std::streamsize kMaxListBytes = std::streamsize{16} << 20;

using Sums = std::map<std::string, FileHash>;  // by file name

absl::StatusOr<std::string> ReadList(const std::string& path) {
  std::ifstream in(path, std::ios::binary);
  std::string text(static_cast<size_t>(kMaxListBytes), '\0');
  in.read(text.data(), kMaxListBytes);
  if (in.bad() || in.gcount() == kMaxListBytes) {
    return absl::InvalidArgumentError(
        absl::StrCat(path, ": cannot be read, or has ", kMaxListBytes, " bytes or more"));
  }
  text.resize(static_cast<size_t>(in.gcount()));
  return text;
}

absl::StatusOr<Sums> ParseSums(const std::string& text, const std::string& path) {
  Sums sums;
  std::istringstream lines(text);
  std::string line;
  for (int n = 1; std::getline(lines, line); ++n) {
    if (line.empty()) continue;
    // Two spaces, or a space and a star for binary files.
    const FileHash hash = FileHash::Of(FileHash::Kind::kSha256, line.substr(0, 64));
    if (hash.kind == FileHash::Kind::kNone || line.size() < 67 || line[64] != ' ' ||
        (line[65] != ' ' && line[65] != '*')) {
      return absl::InvalidArgumentError(absl::StrCat(
          path, ":", n,
          ": must be 64 hexadecimal digits, two spaces and a file name, as sha256sum writes it"));
    }
    std::string name = line.substr(66);
    if (name.rfind("./", 0) == 0) name.erase(0, 2);
    sums[name] = hash;
  }
  return sums;
}

// What is known of the files of `folder`; empty where nothing is.
absl::StatusOr<Sums> SumsOf(const std::filesystem::path& folder) {
  std::error_code error;
  Sums sums;
  const std::string manifest_path = (folder / kManifestName).string();
  if (std::filesystem::exists(manifest_path, error)) {
    PHX_ASSIGN_OR_RETURN(const std::string text, ReadList(manifest_path));
    PHX_ASSIGN_OR_RETURN(const Manifest manifest, ParseManifest(text, manifest_path));
    for (const auto& [path, entry] : manifest.files) {
      if (entry.hash.kind != FileHash::Kind::kNone) sums[path] = entry.hash;
    }
  }
  const std::string sums_path = (folder / kSumsName).string();
  if (std::filesystem::exists(sums_path, error)) {
    PHX_ASSIGN_OR_RETURN(const std::string text, ReadList(sums_path));
    PHX_ASSIGN_OR_RETURN(const Sums more, ParseSums(text, sums_path));
    for (const auto& [path, hash] : more) sums[path] = hash;
  }
  return sums;
}

absl::StatusOr<FileHash> HashOf(const MappedFile& file, FileHash::Kind kind,
                                const std::function<bool()>& cancelled, bool flip) {
  FileHasher hasher(kind, file.bytes());
  int64_t begin = 0;
  if (flip) {
    const auto other = static_cast<uint8_t>(file.data()[0] ^ 1);
    hasher.Update(&other, 1);
    begin = 1;
  }
  for (; begin < file.bytes(); begin += kPiece) {
    if (cancelled && cancelled()) return absl::CancelledError("stopped while weights were verified");
    hasher.Update(file.data() + begin, static_cast<size_t>(std::min(kPiece, file.bytes() - begin)));
  }
  return hasher.Finish();
}

}  // namespace

absl::Status VerifyWeights(const std::vector<std::string>& files, const std::function<bool()>& cancelled,
                           bool flip_first) {
  std::optional<std::filesystem::path> folder;
  Sums sums;
  for (size_t i = 0; i < files.size(); ++i) {
    const std::filesystem::path path = files[i];
    if (folder != path.parent_path()) {
      folder = path.parent_path();
      PHX_ASSIGN_OR_RETURN(sums, SumsOf(*folder));
    }
    const auto wanted = sums.find(path.filename().string());
    if (wanted == sums.end()) {
      return absl::FailedPreconditionError(absl::StrCat(
          "--verify-weights: ", files[i], " has no checksum: neither ", std::string(kManifestName),
          " (left by phalanx pull) nor ", kSumsName, " in its folder names it"));
    }
    PHX_ASSIGN_OR_RETURN(const std::unique_ptr<MappedFile> file, MappedFile::Open(files[i], "weights"));
    PHX_ASSIGN_OR_RETURN(const FileHash hash,
                         HashOf(*file, wanted->second.kind, cancelled, flip_first && i == 0));
    if (hash == wanted->second) continue;
    return absl::DataLossError(absl::StrCat(files[i], " is damaged: its content has ", hash.Text(),
                                            ", its checksum says ", wanted->second.Text()));
  }
  spdlog::info("{} files of weights are what their checksums say", files.size());
  return absl::OkStatus();
}

}  // namespace phalanx
