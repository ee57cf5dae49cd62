#include "worker/shared_weights.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <csignal>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <string>
#include <thread>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"

namespace phalanx {
namespace {

using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::SizeIs;
namespace fs = std::filesystem;

const std::vector<int64_t> kSizes = {100, 3 << 20, 64, 5 << 20, 1};

class SharedWeightsTest : public ::testing::Test {
 protected:
  SharedWeightsTest() { fs::create_directories(folder_); }
  ~SharedWeightsTest() override { fs::remove_all(folder_); }

  SharedWeightsOptions Options(const std::string& model = "model",
                               const std::string& slice = "rank 0") const {
    return {.folder = folder_,
            .model_key = model,
            .slice_key = slice,
            .expected_bytes = 1 << 20,
            .wait = std::chrono::seconds(20),
            .cancelled = nullptr};
  }
  static std::unique_ptr<SharedWeights> Open(const SharedWeightsOptions& options) {
    absl::StatusOr<std::unique_ptr<SharedWeights>> weights = SharedWeights::Open(options);
    EXPECT_TRUE(weights.ok()) << weights.status();
    return weights.ok() ? *std::move(weights) : nullptr;
  }
  static void Pack(SharedWeights* weights, const std::vector<int64_t>& sizes = kSizes) {
    for (size_t i = 0; i < sizes.size(); ++i) {
      const WeightMemory::Piece piece = weights->Take(sizes[i]);
      ASSERT_NE(piece.data, nullptr);
      ASSERT_FALSE(piece.packed);
      EXPECT_EQ(reinterpret_cast<uintptr_t>(piece.data) % 64, 0);
      auto* const bytes = static_cast<char*>(piece.data);
      EXPECT_EQ(std::count(bytes, bytes + sizes[i], 0), sizes[i]);
      std::memset(bytes, static_cast<int>(i + 1), static_cast<size_t>(sizes[i]));
    }
  }
  static void ExpectPacked(SharedWeights* weights) {
    EXPECT_TRUE(weights->was_packed());
    int64_t bytes = 0;
    for (size_t i = 0; i < kSizes.size(); ++i) {
      const WeightMemory::Piece piece = weights->Take(kSizes[i]);
      ASSERT_NE(piece.data, nullptr);
      ASSERT_TRUE(piece.packed);
      const auto* const data = static_cast<const char*>(piece.data);
      EXPECT_EQ(std::count(data, data + kSizes[i], static_cast<char>(i + 1)), kSizes[i]);
      bytes += kSizes[i];
    }
    EXPECT_EQ(weights->bytes(), bytes);
    weights->Finish();
    EXPECT_FALSE(weights->given_up());
  }
  // Runs `body` in a process that ends without leaving: as if killed.
  template <typename Body>
  static void InKilledProcess(Body body) {
    const pid_t child = fork();
    if (child == 0) {
      body();
      _exit(::testing::Test::HasFailure() ? 1 : 0);
    }
    int status = 0;
    ASSERT_EQ(waitpid(child, &status, 0), child);
    ASSERT_TRUE(WIFEXITED(status) && WEXITSTATUS(status) == 0) << status;
  }
  void LeaveComplete(const std::string& model = "model", const std::string& slice = "rank 0") const {
    InKilledProcess([&] {
      auto* const weights = Open(Options(model, slice)).release();
      Pack(weights);
      weights->Finish();
    });
  }
  std::vector<std::string> Files() const {
    std::vector<std::string> names;
    for (const auto& entry : fs::directory_iterator(folder_)) names.push_back(entry.path().string());
    return names;
  }

  const std::string folder_ = absl::StrCat(::testing::TempDir(), "shared_weights_test_", getpid());
};

TEST_F(SharedWeightsTest, TheSecondUsesWhatTheFirstPackedAndTheLastRemovesIt) {
  std::unique_ptr<SharedWeights> first = Open(Options());
  Pack(first.get());
  EXPECT_FALSE(first->was_packed());
  first->Finish();
  EXPECT_FALSE(first->given_up());
  std::unique_ptr<SharedWeights> second = Open(Options());
  EXPECT_THAT(Files(), SizeIs(1));
  first = nullptr;
  EXPECT_THAT(Files(), SizeIs(1));
  ExpectPacked(second.get());
  second = nullptr;
  EXPECT_THAT(Files(), IsEmpty());
}

TEST_F(SharedWeightsTest, TheFileIsAsLargeAsItsPieces) {
  std::unique_ptr<SharedWeights> weights = Open(Options());
  Pack(weights.get(), {60 << 20, 10 << 20, 100 << 20, 77});
  weights->Finish();
  EXPECT_LE(fs::file_size(weights->path()), static_cast<uint64_t>(weights->bytes() + (6 << 20)));
}

TEST_F(SharedWeightsTest, OtherKeysAreOtherFiles) {
  std::vector<std::unique_ptr<SharedWeights>> all;
  for (const auto& [model, slice] :
       {std::pair("model", "rank 0"), {"model", "rank 1"}, {"other", "rank 0"}}) {
    all.push_back(Open(Options(model, slice)));
    ASSERT_NE(all.back(), nullptr);
    EXPECT_FALSE(all.back()->was_packed());
    Pack(all.back().get());
    all.back()->Finish();
  }
  EXPECT_THAT(Files(), SizeIs(3));
}

TEST_F(SharedWeightsTest, WaitsForThePacker) {
  std::unique_ptr<SharedWeights> first = Open(Options());
  std::unique_ptr<SharedWeights> second;
  std::thread waiter([&] { second = Open(Options()); });
  std::this_thread::sleep_for(std::chrono::milliseconds(100));
  Pack(first.get());
  first->Finish();
  waiter.join();
  ASSERT_NE(second, nullptr);
  ExpectPacked(second.get());
}

TEST_F(SharedWeightsTest, DoesNotWaitForEverNorWhenCancelled) {
  const std::unique_ptr<SharedWeights> first = Open(Options());
  SharedWeightsOptions options = Options();
  options.wait = std::chrono::milliseconds(50);
  const absl::Status late = SharedWeights::Open(options).status();
  EXPECT_EQ(late.code(), absl::StatusCode::kDeadlineExceeded);
  EXPECT_THAT(std::string(late.message()), HasSubstr(absl::StrCat("process ", getpid())));
  options.wait = std::chrono::seconds(20);
  options.cancelled = [] { return true; };
  EXPECT_EQ(SharedWeights::Open(options).status().code(), absl::StatusCode::kCancelled);
  EXPECT_THAT(Files(), SizeIs(1));
}

TEST_F(SharedWeightsTest, WhatAPackerThatFailsLeavesIsPackedAgain) {
  std::unique_ptr<SharedWeights> first = Open(Options());
  std::unique_ptr<SharedWeights> second;
  std::thread waiter([&] { second = Open(Options()); });
  Pack(first.get());
  first = nullptr;  // without Finish
  waiter.join();
  ASSERT_NE(second, nullptr);
  EXPECT_FALSE(second->was_packed());
  Pack(second.get());
  second->Finish();
  ExpectPacked(Open(Options()).get());
}

TEST_F(SharedWeightsTest, AKilledPackersFileIsTakenOver) {
  InKilledProcess([&] { Pack(Open(Options()).release()); });
  EXPECT_THAT(Files(), SizeIs(1));
  std::unique_ptr<SharedWeights> weights = Open(Options());
  EXPECT_FALSE(weights->was_packed());
  Pack(weights.get());  // which looks for zeros
  weights->Finish();
  ExpectPacked(Open(Options()).get());
}

TEST_F(SharedWeightsTest, WhatKilledWorkersPackedIsUsedAgain) {
  LeaveComplete();
  std::unique_ptr<SharedWeights> weights = Open(Options());
  ExpectPacked(weights.get());
  weights = nullptr;
  EXPECT_THAT(Files(), IsEmpty());
}

TEST_F(SharedWeightsTest, ADamagedFileIsNotTrusted) {
  LeaveComplete();
  const std::string path = Files().at(0);
  const auto good = fs::file_size(path);
  const auto damaged = [&](const std::function<void()>& damage) {
    if (!fs::exists(path)) LeaveComplete();
    damage();
    const std::unique_ptr<SharedWeights> weights = Open(Options());
    ASSERT_NE(weights, nullptr);
    EXPECT_FALSE(weights->was_packed());
    Pack(weights.get());
  };
  for (const int at : {0, 24, 32, 40, 48, 56}) {  // every field of the header but who packed it
    SCOPED_TRACE(at);
    damaged([&] {
      std::fstream file(path, std::ios::in | std::ios::out | std::ios::binary);
      file.seekg(at);
      const int byte = file.get();
      file.seekp(at);
      file.put(static_cast<char>(byte ^ 1));
    });
  }
  damaged([&] { fs::resize_file(path, good / 2); });
  damaged([&] { fs::resize_file(path, 10); });
  damaged([&] { fs::resize_file(path, 0); });
}

TEST_F(SharedWeightsTest, PiecesOfOtherSizesAreNotGivenOut) {
  LeaveComplete();
  std::unique_ptr<SharedWeights> weights = Open(Options());
  EXPECT_TRUE(weights->Take(kSizes[0]).packed);
  EXPECT_EQ(weights->Take(kSizes[1] + 1).data, nullptr);
  EXPECT_EQ(weights->Take(kSizes[1]).data, nullptr);
  EXPECT_TRUE(weights->given_up());
  EXPECT_EQ(weights->bytes(), kSizes[0]);
}

TEST_F(SharedWeightsTest, WithoutRoomNothingIsBegun) {
  SharedWeightsOptions options = Options();
  options.expected_bytes = int64_t{1} << 50;
  const absl::Status status = SharedWeights::Open(options).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_THAT(std::string(status.message()), HasSubstr(absl::StrCat(folder_, " has room for ")));
  EXPECT_THAT(Files(), IsEmpty());
}

TEST_F(SharedWeightsTest, RoomThatEndsWhilePackingLeavesTheRestToTheWorker) {
  InKilledProcess([&] {
    std::signal(SIGXFSZ, SIG_IGN);
    const rlimit limit = {80 << 20, 80 << 20};
    ASSERT_EQ(setrlimit(RLIMIT_FSIZE, &limit), 0);
    std::unique_ptr<SharedWeights> weights = Open(Options());
    const WeightMemory::Piece piece = weights->Take(60 << 20);
    ASSERT_NE(piece.data, nullptr);
    EXPECT_EQ(weights->Take(60 << 20).data, nullptr);
    EXPECT_TRUE(weights->given_up());
    EXPECT_THAT(Files(), IsEmpty());
    std::memset(piece.data, 1, 60 << 20);  // still there
    weights->Finish();
    weights = nullptr;
    EXPECT_THAT(Files(), IsEmpty());
  });
}

TEST_F(SharedWeightsTest, FoldersAndFilesThatAreNoneAreRefused) {
  SharedWeightsOptions options = Options();
  options.folder = folder_ + "/missing";
  EXPECT_THAT(std::string(SharedWeights::Open(options).status().message()), HasSubstr(options.folder));
  LeaveComplete();
  const std::string path = Files().at(0);
  const std::string target = folder_ + "/precious";
  fs::rename(path, target);
  fs::create_symlink(target, path);
  const auto size = fs::file_size(target);
  EXPECT_THAT(std::string(SharedWeights::Open(Options()).status().message()), HasSubstr(path));
  SharedWeights::RemoveUnused(folder_, "");
  EXPECT_EQ(fs::file_size(target), size);
}

TEST_F(SharedWeightsTest, WhatNobodyUsesIsRemovedButForTheOwnModels) {
  LeaveComplete("other", "rank 0");
  LeaveComplete("model", "rank 1");
  std::ofstream(folder_ + "/phalanx-other-file") << "x";
  const std::unique_ptr<SharedWeights> used = Open(Options("other", "rank 1"));
  Pack(used.get());
  used->Finish();
  EXPECT_THAT(Files(), SizeIs(4));
  SharedWeights::RemoveUnused(folder_, "model");
  EXPECT_THAT(Files(), SizeIs(3));
  ExpectPacked(Open(Options("model", "rank 1")).get());
  LeaveComplete("model", "rank 1");
  SharedWeights::RemoveUnused(folder_, "");
  EXPECT_THAT(Files(), ::testing::UnorderedElementsAre(used->path(), folder_ + "/phalanx-other-file"));
}

}  // namespace
}  // namespace phalanx
