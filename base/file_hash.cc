#include "base/file_hash.h"

#include <openssl/evp.h>

#include "absl/strings/ascii.h"
#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "base/check.h"
#include "base/strings.h"

namespace phalanx {

namespace {
constexpr std::string_view kSha256Prefix = "sha256:";
constexpr std::string_view kGitPrefix = "git-sha1:";
}  // namespace

std::string FileHash::Text() const {
  if (kind == Kind::kNone) return "";
  return absl::StrCat(ToAbsl(kind == Kind::kSha256 ? kSha256Prefix : kGitPrefix), hex);
}

FileHash FileHash::Of(Kind kind, std::string_view hex) {
  const size_t digits = kind == Kind::kSha256 ? 64 : 40;
  if (kind == Kind::kNone || hex.size() != digits) return {};
  for (const unsigned char c : hex) {
    if (!absl::ascii_isxdigit(c)) return {};
  }
  return {kind, absl::AsciiStrToLower(ToAbsl(hex))};
}

FileHash FileHash::Parse(std::string_view text) {
  if (text.starts_with(kSha256Prefix)) return Of(Kind::kSha256, text.substr(kSha256Prefix.size()));
  if (text.starts_with(kGitPrefix)) return Of(Kind::kGitBlob, text.substr(kGitPrefix.size()));
  return {};
}

struct FileHasher::State {
  EVP_MD_CTX* context = EVP_MD_CTX_new();
  ~State() { EVP_MD_CTX_free(context); }
};

FileHasher::FileHasher(FileHash::Kind kind, int64_t size) : kind_(kind), state_(std::make_unique<State>()) {
  PHX_CHECK(kind != FileHash::Kind::kNone, "nothing to hash with");
  const EVP_MD* digest = kind == FileHash::Kind::kSha256 ? EVP_sha256() : EVP_sha1();
  PHX_CHECK(EVP_DigestInit_ex(state_->context, digest, nullptr) == 1, "OpenSSL");
  if (kind == FileHash::Kind::kGitBlob) {
    const std::string head = absl::StrCat("blob ", size);
    Update(head.c_str(), head.size() + 1);  // with its zero
  }
}

FileHasher::~FileHasher() = default;

void FileHasher::Update(const void* data, size_t size) {
  PHX_CHECK(EVP_DigestUpdate(state_->context, data, size) == 1, "OpenSSL");
}

FileHash FileHasher::Finish() {
  unsigned char digest[EVP_MAX_MD_SIZE];
  unsigned size = 0;
  PHX_CHECK(EVP_DigestFinal_ex(state_->context, digest, &size) == 1, "OpenSSL");
  return {kind_, absl::BytesToHexString({reinterpret_cast<const char*>(digest), size})};
}

}  // namespace phalanx
