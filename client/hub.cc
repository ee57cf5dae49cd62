#include "client/hub.h"

#include <algorithm>
#include <set>

#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "base/json_file.h"
#include "base/pull_manifest.h"
#include "base/status_macros.h"
#include "base/strings.h"

namespace phalanx {
namespace {

using nlohmann::json;

constexpr size_t kMaxPathBytes = 1024;
constexpr size_t kMaxNameBytes = 255;  // of a file system

// At the top of a repository.
constexpr std::string_view kServed[] = {
    "config.json",
    "generation_config.json",
    "quantize_config.json",
    "quant_config.json",
    "hf_quant_config.json",
    "tokenizer*",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "*.tiktoken",
    "tekken.json",
    "chat_template*",
    "*.safetensors",
    "*.safetensors.index.json",
};
// The same, in any case.
constexpr std::string_view kServedLowerCase[] = {"readme*", "license*", "licence*", "notice*", "copying*"};
// Programs and images are no part of a model.
constexpr std::string_view kNotServed[] = {"*.py", "*.png", "*.jpg"};

bool MatchAny(const auto& patterns, std::string_view text) {
  return std::any_of(std::begin(patterns), std::end(patterns),
                     [&](std::string_view pattern) { return MatchGlob(pattern, text); });
}

bool IsServed(std::string_view path) {
  if (path.find('/') != std::string_view::npos || MatchAny(kNotServed, path)) return false;
  return MatchAny(kServed, path) || MatchAny(kServedLowerCase, absl::AsciiStrToLower(ToAbsl(path)));
}

bool IsWeights(std::string_view path) { return path.ends_with(".safetensors"); }

// Matches one byte against the set that begins at pattern[at] == '['. Returns the index behind its ']', or
// npos where the set is not closed: then '[' stands for itself.
size_t MatchSet(std::string_view pattern, size_t at, char c, bool* matches) {
  size_t i = at + 1;
  const bool negated = i < pattern.size() && pattern[i] == '!';
  if (negated) ++i;
  const size_t close = pattern.find(']', i + 1);  // a ']' that comes first is one of the set
  if (close == std::string_view::npos) return close;
  bool found = false;
  const auto byte = [](char value) { return static_cast<unsigned char>(value); };
  while (i < close) {
    if (i + 2 < close && pattern[i + 1] == '-') {
      found |= byte(pattern[i]) <= byte(c) && byte(c) <= byte(pattern[i + 2]);
      i += 3;
    } else {
      found |= pattern[i] == c;
      ++i;
    }
  }
  *matches = found != negated;
  return close + 1;
}

absl::Status ParseFile(const json& entry, const std::string& where, HubFile* file) {
  if (!entry.is_object()) {
    return absl::InvalidArgumentError(absl::StrCat(where, " is ", ShowJson(entry), ", must be an object"));
  }
  const JsonKeys keys(entry, where);
  PHX_RETURN_IF_ERROR(keys.OptionalString("rfilename", &file->path));
  if (file->path.empty()) return keys.Missing("rfilename", "the file's path");
  if (absl::Status path = CheckRepoPath(file->path); !path.ok()) {
    return absl::InvalidArgumentError(absl::StrCat(where, ": ", path.message()));
  }
  const auto size_of = [](const JsonKeys& from, std::optional<int64_t>* out) -> absl::Status {
    const json* size = from.Find("size");
    if (size == nullptr) return absl::OkStatus();
    if (!size->is_number_unsigned() || size->get<uint64_t>() > uint64_t{1} << 62) {
      return from.Bad("size", *size, "a number of bytes");
    }
    *out = size->get<int64_t>();
    return absl::OkStatus();
  };
  PHX_RETURN_IF_ERROR(size_of(keys, &file->size));
  const json* lfs = keys.Find("lfs");
  if (lfs == nullptr) {
    std::string blob;
    PHX_RETURN_IF_ERROR(keys.OptionalString("blobId", &blob));
    file->hash = FileHash::Of(FileHash::Kind::kGitBlob, blob);
    return absl::OkStatus();
  }
  if (!lfs->is_object()) return keys.Bad("lfs", *lfs, "an object");
  // blobId is of the pointer then, not of the content.
  const JsonKeys pointer(*lfs, where, "lfs");
  PHX_RETURN_IF_ERROR(size_of(pointer, &file->size));
  std::string sha256;
  PHX_RETURN_IF_ERROR(pointer.OptionalString("sha256", &sha256));
  if (sha256.empty()) PHX_RETURN_IF_ERROR(pointer.OptionalString("oid", &sha256));
  if (sha256.starts_with("sha256:")) sha256.erase(0, 7);
  file->hash = FileHash::Of(FileHash::Kind::kSha256, sha256);
  if (!sha256.empty() && file->hash.kind == FileHash::Kind::kNone) {
    return pointer.Bad("sha256", json(sha256), "64 hexadecimal digits");
  }
  return absl::OkStatus();
}

}  // namespace

absl::Status CheckRepository(std::string_view repository) {
  const std::vector<std::string> parts = absl::StrSplit(ToAbsl(repository), '/');
  bool good = parts.size() == 2 && repository.size() <= 200;
  for (const std::string& part : parts) {
    good = good && !part.empty() && part[0] != '.' && part[0] != '-';
    for (const unsigned char c : part)
      good = good && (absl::ascii_isalnum(c) || c == '.' || c == '-' || c == '_');
  }
  if (good) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat("repository ", Quote(repository),
                                                 " is not ORG/NAME of letters, digits, '.', '-' and '_'"));
}

absl::Status CheckRepoPath(std::string_view path) {
  const auto bad = [&](std::string_view why) {
    return absl::InvalidArgumentError(
        absl::StrCat("the file name ", Quote(path), " is refused: ", ToAbsl(why)));
  };
  if (path.empty() || path.size() > kMaxPathBytes) return bad("it is empty or longer than 1024 bytes");
  if (path[0] == '/') return bad("it is absolute");
  for (const unsigned char c : path) {
    if (c < 0x20 || c == 0x7f) return bad("it holds a control character");
    if (c == '\\') return bad("it holds a backslash");
  }
  for (const absl::string_view part : absl::StrSplit(ToAbsl(path), '/')) {
    if (part.empty() || part == "." || part == "..") return bad("it has a part that is empty, '.' or '..'");
    if (part.size() + kPartialSuffix.size() > kMaxNameBytes)
      return bad("it has a part longer than 244 bytes");
    if (part == ToAbsl(kManifestName) || absl::EndsWith(part, ToAbsl(kPartialSuffix))) {
      return bad("it is one of this program's own names");
    }
  }
  return absl::OkStatus();
}

absl::StatusOr<HubListing> ParseListing(std::string_view text, const std::string& where,
                                        const std::string& revision) {
  PHX_ASSIGN_OR_RETURN(const json listing, ParseJson(text, where));
  if (!listing.is_object()) {
    return absl::InvalidArgumentError(
        absl::StrCat(where, ": holds ", ShowJson(listing), ", must be an object"));
  }
  const JsonKeys keys(listing, where);
  HubListing out{.commit = revision, .files = {}};
  PHX_RETURN_IF_ERROR(keys.OptionalString("sha", &out.commit));
  const bool has_control = std::any_of(out.commit.begin(), out.commit.end(),
                                       [](unsigned char c) { return c <= 0x20 || c >= 0x7f; });
  if (out.commit.empty() || out.commit.size() > 200 || has_control) {
    return keys.Bad("sha", json(out.commit), "the name of a commit");
  }
  const json* siblings = keys.Find("siblings");
  if (siblings == nullptr) return keys.Missing("siblings", "an array of files");
  if (!siblings->is_array()) return keys.Bad("siblings", *siblings, "an array of files");
  std::set<std::string> seen;
  for (size_t i = 0; i < siblings->size(); ++i) {
    HubFile file;
    PHX_RETURN_IF_ERROR(ParseFile((*siblings)[i], absl::StrCat(where, ": siblings[", i, "]"), &file));
    if (!seen.insert(file.path).second) {
      return absl::InvalidArgumentError(
          absl::StrCat(where, ": siblings[", i, "]: the file ", Quote(file.path), " is listed twice"));
    }
    out.files.push_back(std::move(file));
  }
  return out;
}

bool MatchGlob(std::string_view pattern, std::string_view text) {
  std::string below;
  if (pattern.ends_with('/')) pattern = below = absl::StrCat(ToAbsl(pattern), "*");
  size_t p = 0, t = 0;
  size_t star = std::string_view::npos, star_text = 0;  // the last '*', and where its text ends for now
  while (t < text.size()) {
    if (p < pattern.size() && pattern[p] == '*') {
      star = p++;
      star_text = t;
      continue;
    }
    if (p < pattern.size()) {
      bool matches = pattern[p] == '?' || pattern[p] == text[t];
      size_t next = p + 1;
      if (pattern[p] == '[') {
        bool in_set = false;
        if (const size_t behind = MatchSet(pattern, p, text[t], &in_set); behind != std::string_view::npos) {
          matches = in_set;
          next = behind;
        }
      }
      if (matches) {
        p = next;
        ++t;
        continue;
      }
    }
    if (star == std::string_view::npos) return false;
    p = star + 1;
    t = ++star_text;
  }
  return pattern.find_first_not_of('*', p) == std::string_view::npos;
}

std::vector<HubFile> SelectFiles(const HubListing& listing, const std::vector<std::string>& include,
                                 const std::vector<std::string>& exclude) {
  std::vector<HubFile> chosen;
  for (const HubFile& file : listing.files) {
    if (include.empty() ? !IsServed(file.path) : !MatchAny(include, file.path)) continue;
    if (!MatchAny(exclude, file.path)) chosen.push_back(file);
  }
  // The same weights again in another layout, beside those that config.json is of.
  const bool own_layout = std::any_of(chosen.begin(), chosen.end(), [](const HubFile& file) {
    return file.path.starts_with("model") && IsWeights(file.path);
  });
  if (include.empty() && own_layout) {
    std::erase_if(chosen, [](const HubFile& file) {
      return file.path.starts_with("consolidated") && file.path.find(".safetensors") != std::string::npos;
    });
  }
  std::sort(chosen.begin(), chosen.end(), [](const HubFile& a, const HubFile& b) {
    if (IsWeights(a.path) != IsWeights(b.path)) return IsWeights(b.path);
    return a.path < b.path;
  });
  return chosen;
}

}  // namespace phalanx
