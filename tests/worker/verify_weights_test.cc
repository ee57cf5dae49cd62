#include "worker/verify_weights.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <string>
#include <vector>

#include "base/file_hash.h"
#include "base/pull_manifest.h"

namespace phalanx {
namespace {

using ::testing::HasSubstr;

class VerifyWeightsTest : public ::testing::Test {
 protected:
  VerifyWeightsTest() { std::filesystem::create_directories(folder_); }
  ~VerifyWeightsTest() override { std::filesystem::remove_all(folder_); }

  std::string Path(const std::string& name) const { return (folder_ / name).string(); }
  std::string Write(const std::string& name, const std::string& content) const {
    std::ofstream(Path(name), std::ios::binary) << content;
    return Path(name);
  }
  static FileHash HashOf(FileHash::Kind kind, const std::string& content) {
    FileHasher hasher(kind, static_cast<int64_t>(content.size()));
    hasher.Update(content.data(), content.size());
    return hasher.Finish();
  }
  static std::string Sha(const std::string& content) { return HashOf(FileHash::Kind::kSha256, content).hex; }
  static absl::Status Verify(const std::vector<std::string>& files, bool flip = false) {
    return VerifyWeights(files, nullptr, flip);
  }

  const std::filesystem::path folder_ =
      std::filesystem::path(::testing::TempDir()) /
      ("verify_" + std::string(::testing::UnitTest::GetInstance()->current_test_info()->name()));
};

TEST_F(VerifyWeightsTest, ListsOfSha256sum) {
  const std::string large(9 << 20, 'x');
  const std::string a = Write("a.gguf", "weights"), b = Write("b.gguf", large);
  Write("SHA256SUMS", Sha("weights") + "  a.gguf\n" + Sha(large) + " *./b.gguf\n\n" + Sha("z") + "  other\n");
  EXPECT_TRUE(Verify({a, b}).ok()) << Verify({a, b});
  // Also the last bit of the last piece.
  std::string other = large;
  other.back() = 'y';
  Write("b.gguf", other);
  const absl::Status damaged = Verify({a, b});
  EXPECT_EQ(damaged.code(), absl::StatusCode::kDataLoss);
  for (const std::string& part : {b, Sha(large), Sha(other)}) {
    EXPECT_THAT(std::string(damaged.message()), HasSubstr(part));
  }
  EXPECT_EQ(Verify({a}, /*flip=*/true).code(), absl::StatusCode::kDataLoss);
}

TEST_F(VerifyWeightsTest, ThePullsNote) {
  const std::string file = Write("model.safetensors", "weights");
  Manifest manifest;
  manifest.files["model.safetensors"] = {7, 0, HashOf(FileHash::Kind::kGitBlob, "weights")};
  manifest.files["unknown.safetensors"] = {7, 0, {}};
  Write(std::string(kManifestName), RenderManifest(manifest));
  EXPECT_TRUE(Verify({file}).ok()) << Verify({file});
  Write("model.safetensors", "weightz");
  EXPECT_EQ(Verify({file}).code(), absl::StatusCode::kDataLoss);
  // The hub gave none.
  EXPECT_EQ(Verify({Write("unknown.safetensors", "weights")}).code(), absl::StatusCode::kFailedPrecondition);
}

TEST_F(VerifyWeightsTest, WhatIsMissingOrWrongIsNamed) {
  const std::string file = Write("a.gguf", "weights");
  const absl::Status none = Verify({file});
  EXPECT_EQ(none.code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(std::string(none.message()), HasSubstr(file));
  const std::string sha = Sha("weights");
  for (const std::string& line : std::vector<std::string>{sha, sha + " a.gguf", "zz  a.gguf", sha + "  "}) {
    Write("SHA256SUMS", Sha("b") + "  b\n" + line + "\n");
    const absl::Status wrong = Verify({file});
    EXPECT_EQ(wrong.code(), absl::StatusCode::kInvalidArgument) << line;
    EXPECT_THAT(std::string(wrong.message()), HasSubstr("SHA256SUMS:2"));
  }
  Write("SHA256SUMS", Sha("weights") + "  a.gguf\n");
  EXPECT_EQ(VerifyWeights(
                {file}, [] { return true; }, false)
                .code(),
            absl::StatusCode::kCancelled);
}

}  // namespace
}  // namespace phalanx
