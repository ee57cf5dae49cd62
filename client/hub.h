// What a Hugging Face compatible hub says of a repository, and which of its files to take. Pure.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "base/file_hash.h"

namespace phalanx {

// The end of the names of files that are not whole yet: no file of a hub may have it.
inline constexpr std::string_view kPartialSuffix = ".incomplete";

struct HubFile {
  std::string path;  // relative, CheckRepoPath
  std::optional<int64_t> size;
  FileHash hash;  // kNone where the hub does not say
};

struct HubListing {
  std::string commit;  // or the revision, where the hub does not say
  std::vector<HubFile> files;
};

// "ORG/NAME" as hubs allow it. InvalidArgument.
absl::Status CheckRepository(std::string_view repository);

// A path that stays inside a directory: no "..", no leading '/', no control characters, none of pull's own
// names. InvalidArgument naming it.
absl::Status CheckRepoPath(std::string_view path);

// The answer of /api/models/ORG/NAME/revision/REV?blobs=true. InvalidArgument naming `where`, the key and its
// value.
absl::StatusOr<HubListing> ParseListing(std::string_view text, const std::string& where,
                                        const std::string& revision);

// fnmatch's patterns: '*' any text (with '/'), '?' one byte, '[a-z]' and '[!a-z]' one of a set. A pattern
// that ends in '/' means all below it. Time is at most the product of the lengths.
bool MatchGlob(std::string_view pattern, std::string_view text);

// The files to fetch, small ones first, then weights by name. Without `include` those that a server needs:
// config, tokenizer, template, safetensors, README and licence, all at the top of the repository.
std::vector<HubFile> SelectFiles(const HubListing& listing, const std::vector<std::string>& include,
                                 const std::vector<std::string>& exclude);

}  // namespace phalanx
