#include "client/pull.h"

#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>

#include "absl/strings/str_cat.h"
#include "base/file_hash.h"
#include "base/pull_manifest.h"
#include "client/http_url.h"
#include "client/hub.h"
#include "client/hub_client.h"
#include "client/pull_directory.h"
#include "client/pull_progress.h"

namespace phalanx {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::Not;

Url At(std::string_view text) {
  auto url = ParseUrl(text);
  EXPECT_TRUE(url.ok()) << url.status();
  return url.value_or(Url{});
}

TEST(UrlTest, Parts) {
  const Url url = At("HTTPS://Hub.Example:8443/a/b?x=1#part");
  EXPECT_TRUE(url.tls);
  EXPECT_EQ(url.host, "hub.example");
  EXPECT_EQ(url.port, 8443);
  EXPECT_EQ(url.target, "/a/b?x=1");
  EXPECT_EQ(url.Origin(), "https://hub.example:8443");
  EXPECT_EQ(url.Shown(), "https://hub.example:8443/a/b");
  EXPECT_EQ(At("http://h").Authority(), "h");
  EXPECT_EQ(At("http://h:80/").Authority(), "h");
  EXPECT_EQ(At("http://h:443/").Authority(), "h:443");
  EXPECT_EQ(At("https://h?q").target, "/?q");
  EXPECT_EQ(At("https://h/ü x").target, "/%C3%BC%20x");
  EXPECT_EQ(At("http://[::1]:81/x").host, "::1");
  EXPECT_EQ(At("http://[::1]:81/x").Authority(), "[::1]:81");
}

TEST(UrlTest, Refused) {
  for (const char* text :
       {"", "hub.example", "ftp://h/", "file:///etc/passwd", "https://", "https:///x", "http://h:0/",
        "http://h:65536/", "http://h:+1/", "http://h:x/", "http://h:1:2/", "http://[::1/", "http://[::1]x/",
        "http://[]/", "http://h h/", "http://h\r\nX: y/", "http://h/\x01", "http://h%2f/"}) {
    EXPECT_TRUE(absl::IsInvalidArgument(ParseUrl(text).status())) << text;
  }
  const auto secret = ParseUrl("https://user:hunter2@h/");
  EXPECT_TRUE(absl::IsInvalidArgument(secret.status()));
  EXPECT_THAT(std::string(secret.status().message()), Not(HasSubstr("hunter2")));
}

TEST(UrlTest, Redirects) {
  const Url from = At("https://h:8443/a/b/c?q=1");
  const auto to = [&](std::string_view location) {
    const auto url = ResolveRedirect(from, location);
    return url.ok() ? url->Origin() + url->target : std::string(url.status().message());
  };
  EXPECT_EQ(to("https://other/x?y"), "https://other/x?y");
  EXPECT_EQ(to("//other/x"), "https://other/x");
  EXPECT_EQ(to("/x?y=../z"), "https://h:8443/x?y=../z");
  EXPECT_EQ(to("x"), "https://h:8443/a/b/x");
  EXPECT_EQ(to("../x"), "https://h:8443/a/x");
  EXPECT_EQ(to("../../../../x"), "https://h:8443/x");
  EXPECT_EQ(to("."), "https://h:8443/a/b/");
  EXPECT_EQ(to("?z"), "https://h:8443/a/b/c?z");
  EXPECT_EQ(to("x:y"), std::string(ParseUrl("x:y").status().message()));
  EXPECT_TRUE(absl::IsPermissionDenied(ResolveRedirect(from, "http://h:8443/x").status()));
  EXPECT_TRUE(absl::IsInvalidArgument(ResolveRedirect(from, "").status()));
  EXPECT_TRUE(absl::IsInvalidArgument(ResolveRedirect(from, "/x\r\nHost: y").status()));
  EXPECT_TRUE(ResolveRedirect(At("http://h/"), "https://h/").ok());
}

TEST(UrlTest, TokenStaysAtItsOrigin) {
  EXPECT_TRUE(MaySendToken(At("https://hub/x"), At("https://HUB:443/y")));
  EXPECT_TRUE(MaySendToken(At("http://hub/"), At("https://hub/")));
  EXPECT_FALSE(MaySendToken(At("https://hub/"), At("http://hub/")));
  EXPECT_FALSE(MaySendToken(At("https://hub/"), At("https://hub:8443/")));
  EXPECT_FALSE(MaySendToken(At("http://hub:8080/"), At("https://hub:8443/")));
  EXPECT_FALSE(MaySendToken(At("http://hub:8080/"), At("https://hub/")));
  EXPECT_FALSE(MaySendToken(At("https://hub/"), At("https://cdn.hub/")));
}

TEST(UrlTest, Escapes) {
  EXPECT_EQ(PercentEncode("refs/pr/1", false), "refs%2Fpr%2F1");
  EXPECT_EQ(PercentEncode("a b/ü?#%.txt", true), "a%20b/%C3%BC%3F%23%25.txt");
}

TEST(GlobTest, AsFnmatch) {
  const auto match = [](const char* pattern, const char* text) { return MatchGlob(pattern, text); };
  EXPECT_TRUE(match("*.safetensors", "sub/model.safetensors"));
  EXPECT_FALSE(match("*.safetensors", "model.safetensors.index.json"));
  EXPECT_TRUE(match("a*b*c", "aXbXbc"));
  EXPECT_FALSE(match("a*b*c", "aXbXb"));
  EXPECT_TRUE(match("model-0000?-of-*", "model-00001-of-00002"));
  EXPECT_TRUE(match("[a-c]x", "bx"));
  EXPECT_FALSE(match("[!a-c]x", "bx"));
  EXPECT_TRUE(match("[]]x", "]x"));
  EXPECT_TRUE(match("[x", "[x"));
  EXPECT_FALSE(match("[x", "x"));
  EXPECT_TRUE(match("onnx/", "onnx/model.onnx"));
  EXPECT_FALSE(match("onnx/", "onnx"));
  EXPECT_TRUE(match("**", ""));
  EXPECT_FALSE(match("?", ""));
  EXPECT_FALSE(match("", "a"));
  // Exponential where every '*' is tried at every place.
  EXPECT_FALSE(MatchGlob("a*a*a*a*a*a*a*a*a*a*a*a*a*b", std::string(1000, 'a')));
}

TEST(HubTest, Repositories) {
  EXPECT_TRUE(CheckRepository("microsoft/Phi-4-mini-reasoning").ok());
  EXPECT_TRUE(CheckRepository("a/B_1.5").ok());
  for (const char* bad :
       {"", "a", "a/", "/b", "a/b/c", "../b", "a/..", "a/.b", "a b/c", "a/b?c", "a/-b", "a/b#c"}) {
    EXPECT_TRUE(absl::IsInvalidArgument(CheckRepository(bad))) << bad;
  }
}

TEST(HubTest, Paths) {
  for (const char* good : {"a", "a/b.txt", "..a", "a..", ".gitattributes", "a b", "ü"}) {
    EXPECT_TRUE(CheckRepoPath(good).ok()) << good;
  }
  for (const std::string& bad :
       {std::string(), std::string("/a"), std::string(".."), std::string("../a"), std::string("a/../b"),
        std::string("a/.."), std::string("a//b"), std::string("a/"), std::string("./a"), std::string("a\nb"),
        std::string("a\0b", 3), std::string("a\x7f"), std::string("a\\b"), std::string("a.incomplete"),
        std::string("x.incomplete/y"), std::string(".phalanx-pull.json"), std::string(245, 'a'),
        std::string(1025, '/')}) {
    EXPECT_TRUE(absl::IsInvalidArgument(CheckRepoPath(bad))) << bad;
  }
}

const std::string kSha256(64, 'a'), kSha1(40, 'b');

absl::StatusOr<HubListing> Parse(const std::string& text) { return ParseListing(text, "hub", "main"); }

TEST(HubTest, Listing) {
  const auto listing = Parse(R"({"sha": "c0ffee", "siblings": [
      {"rfilename": "config.json", "size": 3, "blobId": ")" +
                             kSha1 + R"(", "lfs": null},
      {"rfilename": "w.safetensors", "size": 7, "blobId": ")" +
                             kSha1 + R"(", "lfs": {"sha256": ")" + kSha256 +
                             R"(", "size": 9, "pointerSize": 1}},
      {"rfilename": "x"}]})");
  ASSERT_TRUE(listing.ok()) << listing.status();
  EXPECT_EQ(listing->commit, "c0ffee");
  ASSERT_EQ(listing->files.size(), 3u);
  EXPECT_EQ(listing->files[0].size, 3);
  EXPECT_EQ(listing->files[0].hash, (FileHash{FileHash::Kind::kGitBlob, kSha1}));
  EXPECT_EQ(listing->files[1].size, 9);
  EXPECT_EQ(listing->files[1].hash, (FileHash{FileHash::Kind::kSha256, kSha256}));
  EXPECT_EQ(listing->files[2].size, std::nullopt);
  EXPECT_EQ(listing->files[2].hash.kind, FileHash::Kind::kNone);
  const auto oid =
      Parse(R"({"siblings": [{"rfilename": "x", "lfs": {"oid": "sha256:)" + kSha256 + R"("}}]})");
  ASSERT_TRUE(oid.ok()) << oid.status();
  EXPECT_EQ(oid->files[0].hash, (FileHash{FileHash::Kind::kSha256, kSha256}));
  EXPECT_EQ(Parse(R"({"siblings": []})")->commit, "main");
}

TEST(HubTest, BadListings) {
  const auto error = [](const std::string& text) { return std::string(Parse(text).status().message()); };
  EXPECT_THAT(error("<html>"), HasSubstr("hub"));
  EXPECT_THAT(error("[]"), HasSubstr("must be an object"));
  EXPECT_THAT(error("{}"), HasSubstr("siblings"));
  EXPECT_THAT(error(R"({"sha": 5, "siblings": []})"), HasSubstr("sha"));
  EXPECT_THAT(error(R"({"sha": "\u001b[2J", "siblings": []})"), HasSubstr("sha"));
  EXPECT_THAT(error(R"({"siblings": {}})"), HasSubstr("siblings"));
  EXPECT_THAT(error(R"({"siblings": [5]})"), HasSubstr("siblings[0]"));
  EXPECT_THAT(error(R"({"siblings": [{}]})"), HasSubstr("rfilename"));
  EXPECT_THAT(error(R"({"siblings": [{"rfilename": "../../x"}]})"), HasSubstr("'../../x'"));
  EXPECT_THAT(error(R"({"siblings": [{"rfilename": "a\u0000b"}]})"), HasSubstr("control"));
  EXPECT_THAT(error(R"({"siblings": [{"rfilename": "a"}, {"rfilename": "a"}]})"), HasSubstr("twice"));
  for (const char* size : {"-1", "1.5", "\"1\"", "1e30", "9223372036854775807"}) {
    EXPECT_THAT(error(absl::StrCat(R"({"siblings": [{"rfilename": "a", "size": )", size, "}]}")),
                HasSubstr("size"));
  }
  EXPECT_THAT(error(R"({"siblings": [{"rfilename": "a", "lfs": {"sha256": "xyz"}}]})"), HasSubstr("sha256"));
  EXPECT_THAT(error(R"({"siblings": [{"rfilename": "a", "lfs": 1}]})"), HasSubstr("lfs"));
}

std::vector<std::string> Chosen(const std::vector<std::string>& paths,
                                const std::vector<std::string>& include = {},
                                const std::vector<std::string>& exclude = {}) {
  HubListing listing;
  for (const std::string& path : paths) listing.files.push_back({path, 1, {}});
  std::vector<std::string> out;
  for (const HubFile& file : SelectFiles(listing, include, exclude)) out.push_back(file.path);
  return out;
}

TEST(HubTest, WhatAServerNeeds) {
  EXPECT_THAT(
      Chosen({".gitattributes", "model-00002-of-00002.safetensors", "LICENSE", "README.md", "config.json",
              "model.gguf", "model-00001-of-00002.safetensors", "model.safetensors.index.json",
              "onnx/model.onnx", "data.png", "original/consolidated.00.pth", "original/x.safetensors",
              "pytorch_model.bin", "tokenizer.json", "tokenizer.model", "tokenization_x.py",
              "chat_template.jinja", "generation_config.json", "merges.txt"}),
      ElementsAre("LICENSE", "README.md", "chat_template.jinja", "config.json", "generation_config.json",
                  "merges.txt", "model.safetensors.index.json", "tokenizer.json", "tokenizer.model",
                  "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"));
}

TEST(HubTest, OneLayoutOfTheWeights) {
  EXPECT_THAT(Chosen({"consolidated.safetensors", "config.json"}),
              ElementsAre("config.json", "consolidated.safetensors"));
  EXPECT_THAT(Chosen({"consolidated.safetensors", "model.safetensors"}), ElementsAre("model.safetensors"));
}

TEST(HubTest, IncludeAndExclude) {
  const std::vector<std::string> paths = {"config.json", "a.gguf", "b.gguf", "sub/c.gguf", "m.safetensors"};
  EXPECT_THAT(Chosen(paths, {"*.gguf"}), ElementsAre("a.gguf", "b.gguf", "sub/c.gguf"));
  EXPECT_THAT(Chosen(paths, {"*.gguf", "config.json"}, {"sub/*", "b*"}),
              ElementsAre("a.gguf", "config.json"));
  EXPECT_THAT(Chosen(paths, {}, {"*.safetensors"}), ElementsAre("config.json"));
  EXPECT_THAT(Chosen(paths, {"none"}), IsEmpty());
}

TEST(HubTest, RetryAfter) {
  EXPECT_EQ(ParseRetryAfter("7", 0), 7.0);
  EXPECT_EQ(ParseRetryAfter("Thu, 01 Jan 1970 00:02:00 GMT", 100), 20.0);
  EXPECT_EQ(ParseRetryAfter("Thu, 01 Jan 1970 00:02:00 GMT", 1000), 0.0);
  for (const char* bad : {"", "soon", "-1", "nan", "inf"})
    EXPECT_EQ(ParseRetryAfter(bad, 0), std::nullopt) << bad;
}

TEST(HashTest, KnownOnes) {
  FileHasher sha256(FileHash::Kind::kSha256, 3);
  sha256.Update("a", 1);
  sha256.Update("bc", 2);
  EXPECT_EQ(sha256.Finish().Text(),
            "sha256:ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
  FileHasher git(FileHash::Kind::kGitBlob, 6);
  git.Update("hello\n", 6);
  EXPECT_EQ(git.Finish().Text(), "git-sha1:ce013625030ba8dba906f756967f9e9ca394464a");  // git hash-object
  EXPECT_EQ(FileHash::Parse("sha256:" + std::string(64, 'A')).Text(), "sha256:" + kSha256);
  EXPECT_EQ(FileHash::Parse("sha256:abc").kind, FileHash::Kind::kNone);
  EXPECT_EQ(FileHash::Parse("").kind, FileHash::Kind::kNone);
}

TEST(ManifestTest, BackAndForth) {
  Manifest manifest{"a/b", "main", "c0ffee", {}};
  manifest.files["x"] = {5, 1234567890123456789, {FileHash::Kind::kSha256, kSha256}};
  manifest.files["y/z"] = {0, -1, {}};
  const auto again = ParseManifest(RenderManifest(manifest), "m");
  ASSERT_TRUE(again.ok()) << again.status();
  EXPECT_EQ(again->repository, "a/b");
  EXPECT_EQ(again->revision, "main");
  EXPECT_EQ(again->commit, "c0ffee");
  EXPECT_EQ(again->files, manifest.files);
  for (const char* bad :
       {"", "[]", "{}", R"({"files": []})", R"({"files": {"x": 1}})", R"({"files": {"x": {"size": 1}}})",
        R"({"files": {"x": {"size": "1", "mtime_ns": 1}}})"}) {
    EXPECT_FALSE(ParseManifest(bad, "m").ok()) << bad;
  }
}

TEST(PullTest, ContentRanges) {
  EXPECT_EQ(ParseContentRange("bytes 5-9/10"), (ContentRange{5, 10}));
  EXPECT_EQ(ParseContentRange("bytes 5-9/*"), (ContentRange{5, std::nullopt}));
  for (const char* bad :
       {"", "bytes 5-9", "bytes */10", "bytes 9-5/10", "bytes 5-10/10", "items 5-9/10", "bytes 5/9-10"}) {
    EXPECT_EQ(ParseContentRange(bad), std::nullopt) << bad;
  }
}

TEST(PullTest, DefaultDirectories) {
  EXPECT_EQ(DefaultPullDirectory("a/b", "main", "", "/home/u"), "/home/u/.cache/phalanx/models/a/b");
  EXPECT_EQ(DefaultPullDirectory("a/b", "main", "/c", "/home/u"), "/c/phalanx/models/a/b");
  EXPECT_EQ(DefaultPullDirectory("a/b", "refs/pr/1", "/c", ""), "/c/phalanx/models/a/b@refs--pr--1");
  EXPECT_EQ(DefaultPullDirectory("a/b", "..", "/c", ""), "/c/phalanx/models/a/b@..");
  EXPECT_EQ(DefaultPullDirectory("a/b", "main", "", ""), "");
}

TEST(ProgressTest, Texts) {
  EXPECT_EQ(ShowBytes(999), "999 B");
  EXPECT_EQ(ShowBytes(1000), "1.0 kB");
  EXPECT_EQ(ShowBytes(999'960), "1.0 MB");
  EXPECT_EQ(ShowBytes(15'300'000'000), "15.3 GB");
  EXPECT_EQ(ShowSeconds(6.2), "0:07");
  EXPECT_EQ(ShowSeconds(3 * 3600 + 5 * 60), "3:05:00");
  const ProgressState state{500'000'000, 1'000'000'000, 50e6, "model.safetensors"};
  EXPECT_EQ(FormatProgress(state, 100),
            "[##########----------]  50% 500.0 MB/1.0 GB  50.0 MB/s  ETA 0:10  model.safetensors");
  EXPECT_EQ(FormatProgress(state, 57), " 50% 500.0 MB/1.0 GB  50.0 MB/s  ETA 0:10  ...safetensors");
  for (int width = 0; width < 120; ++width) {
    EXPECT_LE(FormatProgress(state, width).size(), static_cast<size_t>(width));
  }
  EXPECT_EQ(FormatProgress({0, 0, 0, "a\033[31mb"}, 80), "[--------------------]   0% 0 B/0 B  a\\033[31mb");
}

TEST(ProgressTest, RateFollowsTheLastSeconds) {
  RateMeter meter;
  EXPECT_EQ(meter.bytes_per_second(), 0);
  for (int i = 0; i <= 100; ++i) meter.Add(1000, i * 0.1);
  EXPECT_NEAR(meter.bytes_per_second(), 10'000, 1000);
  for (int i = 0; i <= 300; ++i) meter.Add(9000, 10 + i * 0.1);
  EXPECT_NEAR(meter.bytes_per_second(), 90'000, 2000);
}

class PullDirectoryTest : public ::testing::Test {
 protected:
  void SetUp() override { std::filesystem::create_directories(base_); }
  void TearDown() override { std::filesystem::remove_all(base_); }
  static std::string Content(const std::string& path) {
    std::ifstream in(path);
    return {std::istreambuf_iterator<char>(in), {}};
  }

  const std::string base_ = ::testing::TempDir() + "/pull_test_" + std::to_string(::getpid());
  const std::string root_ = base_ + "/root";
};

TEST_F(PullDirectoryTest, PartialFilesGoOnAndGetTheirName) {
  auto directory = PullDirectory::Open(root_);
  ASSERT_TRUE(directory.ok()) << directory.status();
  EXPECT_EQ(directory->Stat("sub/x")->has_value(), false);
  {
    auto partial = directory->OpenPartial("sub/x");
    ASSERT_TRUE(partial.ok()) << partial.status();
    EXPECT_TRUE(partial->Append("hel", 3).ok());
  }
  EXPECT_EQ(Content(root_ + "/sub/x.incomplete"), "hel");
  auto partial = directory->OpenPartial("sub/x");
  ASSERT_TRUE(partial.ok()) << partial.status();
  EXPECT_EQ(partial->size(), 3);
  EXPECT_TRUE(partial->Append("lo\n", 3).ok());
  FileHasher hasher(FileHash::Kind::kGitBlob, 6);
  EXPECT_TRUE(partial->Hash(&hasher).ok());
  EXPECT_EQ(hasher.Finish().hex, "ce013625030ba8dba906f756967f9e9ca394464a");
  EXPECT_TRUE(directory->Publish("sub/x").ok());
  EXPECT_EQ(directory->Stat("sub/x")->value().size, 6);
  EXPECT_FALSE(std::filesystem::exists(root_ + "/sub/x.incomplete"));
  EXPECT_EQ(directory->Hash("sub/x", FileHash::Kind::kGitBlob)->hex,
            "ce013625030ba8dba906f756967f9e9ca394464a");
}

TEST_F(PullDirectoryTest, LinksLeadNowhere) {
  std::filesystem::create_directories(base_ + "/outside");
  std::filesystem::create_directories(root_);
  std::ofstream(base_ + "/outside/target") << "untouched";
  std::filesystem::create_directory_symlink(base_ + "/outside", root_ + "/sub");
  std::filesystem::create_symlink(base_ + "/outside/target", root_ + "/a.incomplete");
  std::filesystem::create_symlink(base_ + "/outside/target", root_ + "/b");
  std::filesystem::create_hard_link(base_ + "/outside/target", root_ + "/c.incomplete");
  auto directory = PullDirectory::Open(root_);
  ASSERT_TRUE(directory.ok()) << directory.status();
  EXPECT_TRUE(absl::IsFailedPrecondition(directory->OpenPartial("sub/x").status()));
  EXPECT_TRUE(absl::IsFailedPrecondition(directory->Stat("sub/target").status()));
  EXPECT_TRUE(absl::IsFailedPrecondition(directory->OpenPartial("a").status()));
  EXPECT_TRUE(absl::IsFailedPrecondition(directory->OpenPartial("c").status()));
  EXPECT_EQ(directory->Stat("b")->has_value(), false);
  // A link of the file's own name is replaced, not written through.
  EXPECT_TRUE(directory->Write("b", "new").ok());
  EXPECT_FALSE(std::filesystem::is_symlink(root_ + "/b"));
  EXPECT_EQ(Content(root_ + "/b"), "new");
  EXPECT_EQ(Content(base_ + "/outside/target"), "untouched");
  EXPECT_FALSE(std::filesystem::exists(base_ + "/outside/x.incomplete"));
}

TEST_F(PullDirectoryTest, OneAtATime) {
  const auto first = PullDirectory::Open(root_);
  ASSERT_TRUE(first.ok()) << first.status();
  const auto second = PullDirectory::Open(root_);
  EXPECT_TRUE(absl::IsFailedPrecondition(second.status())) << second.status();
  std::ofstream(base_ + "/file") << "x";
  EXPECT_FALSE(PullDirectory::Open(base_ + "/file").ok());
  EXPECT_THAT(std::string(PullDirectory::Open(base_ + "/file/sub").status().message()),
              HasSubstr("file/sub"));
}

TEST_F(PullDirectoryTest, FullDisk) {
  auto directory = PullDirectory::Open(root_);
  ASSERT_TRUE(directory.ok()) << directory.status();
  // /dev/full answers ENOSPC to each write.
  PartialFile full(OwnedFd(::open("/dev/full", O_RDWR)), "model.safetensors", 4096);
  const absl::Status status = full.Append("x", 1);
  EXPECT_TRUE(absl::IsResourceExhausted(status)) << status;
  EXPECT_THAT(std::string(status.message()), HasSubstr("model.safetensors"));
  EXPECT_THAT(std::string(status.message()), HasSubstr("4096 bytes"));
}

}  // namespace
}  // namespace phalanx
