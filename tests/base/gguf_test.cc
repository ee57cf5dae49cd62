#include "base/gguf.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstring>
#include <limits>
#include <random>

#include "tests/base/gguf_writer.h"

namespace phalanx {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

class GgufTest : public ::testing::Test {
 protected:
  absl::StatusOr<std::unique_ptr<GgufFile>> OpenBytes(std::string_view bytes) {
    EXPECT_TRUE(GgufWriter::WriteBytes(path_, bytes));
    return GgufFile::Open(path_);
  }
  absl::StatusOr<std::unique_ptr<GgufFile>> Open(const GgufWriter& writer) {
    return OpenBytes(writer.Serialize());
  }
  void ExpectError(std::string_view bytes, absl::StatusCode code, std::string_view message) {
    const auto file = OpenBytes(bytes);
    ASSERT_FALSE(file.ok());
    EXPECT_EQ(file.status().code(), code) << file.status();
    EXPECT_THAT(std::string(file.status().message()), HasSubstr(std::string(message)));
    EXPECT_THAT(std::string(file.status().message()), HasSubstr(path_));
  }
  void ExpectInvalid(const GgufWriter& writer, std::string_view message) {
    ExpectError(writer.Serialize(), absl::StatusCode::kInvalidArgument, message);
  }
  void TearDown() override { std::filesystem::remove(path_); }

  const std::string path_ = ::testing::TempDir() + "/gguf_test_" + std::to_string(::getpid()) + ".gguf";
};

GgufWriter Sample() {
  GgufWriter w;
  w.SetString("general.architecture", "llama");
  w.SetU32("a.u32", 7);
  w.SetI32("a.i32", -7);
  w.SetU64("a.u64", std::numeric_limits<uint64_t>::max() / 2);
  w.SetF32("a.f32", 0.5f);
  w.SetF64("a.f64", 0.1);
  w.SetBool("a.bool", true);
  w.SetStrings("a.strings", {"", "x", "yz"});
  w.SetI32s("a.ints", {1, -2});
  w.SetF32s("a.floats", {1.5f});
  w.AddTensor("t.f32", DType::kF32, {3, 2}, {1, 2, 3, 4, 5, 6});
  w.AddTensor("t.q4_1", DType::kQ4_1, {32}, std::vector<float>(32, 1.0f));
  w.AddTensor("t.f16", DType::kF16, {1}, {1.0f});
  return w;
}

TEST_F(GgufTest, ReadsEveryKindOfValue) {
  const auto file = Open(Sample());
  ASSERT_TRUE(file.ok()) << file.status();
  const GgufFile& f = **file;
  EXPECT_EQ(f.GetString("general.architecture").value(), "llama");
  EXPECT_EQ(f.GetInt("a.u32").value(), 7);
  EXPECT_EQ(f.GetInt("a.i32").value(), -7);
  EXPECT_EQ(f.GetInt("a.u64").value(), std::numeric_limits<int64_t>::max());
  EXPECT_EQ(f.GetFloat("a.f32").value(), 0.5);
  EXPECT_EQ(f.GetFloat("a.f64").value(), 0.1);
  EXPECT_EQ(f.GetBool("a.bool").value(), true);
  EXPECT_THAT(f.GetStrings("a.strings").value(), ElementsAre("", "x", "yz"));
  EXPECT_THAT(f.GetInts("a.ints").value(), ElementsAre(1, -2));
  EXPECT_EQ(f.metadata().size(), 10u);
  EXPECT_EQ(f.GetInt("absent").status().code(), absl::StatusCode::kNotFound);
  EXPECT_THAT(std::string(f.GetInt("absent").status().message()), HasSubstr("'absent' is missing"));
  EXPECT_EQ(f.GetInt("a.f32").status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(f.GetBool("a.u32").status().message()),
              HasSubstr("an unsigned integer, must be a bool"));
}

TEST_F(GgufTest, ReadsTensors) {
  const auto file = Open(Sample());
  ASSERT_TRUE(file.ok()) << file.status();
  ASSERT_EQ((*file)->tensors().size(), 3u);
  const GgufTensor* t = (*file)->FindTensor("t.f32");
  ASSERT_NE(t, nullptr);
  EXPECT_EQ(t->dtype, DType::kF32);
  EXPECT_THAT(t->dims, ElementsAre(3, 2));
  EXPECT_EQ(t->bytes, 24);
  EXPECT_EQ(reinterpret_cast<uintptr_t>(t->data) % 32, 0u);
  float values[6];
  std::memcpy(values, t->data, sizeof(values));
  EXPECT_THAT(values, ElementsAre(1, 2, 3, 4, 5, 6));
  EXPECT_EQ((*file)->FindTensor("t.q4_1")->bytes, 20);
  EXPECT_EQ((*file)->FindTensor("absent"), nullptr);
}

TEST_F(GgufTest, HashFollowsContent) {
  const auto a = Open(Sample());
  ASSERT_TRUE(a.ok());
  const uint64_t hash = (*a)->ContentHash();
  EXPECT_EQ((*Open(Sample()))->ContentHash(), hash);
  std::string bytes = Sample().Serialize();
  bytes[bytes.size() - 32] ^= 1;  // the f16 tensor
  EXPECT_NE((*OpenBytes(bytes))->ContentHash(), hash);
  GgufWriter other = Sample();
  other.SetU32("b", 1);
  EXPECT_NE((*Open(other))->ContentHash(), hash);
}

TEST_F(GgufTest, OpenErrors) {
  EXPECT_EQ(GgufFile::Open(path_ + ".absent").status().code(), absl::StatusCode::kNotFound);
  EXPECT_EQ(GgufFile::Open(::testing::TempDir()).status().code(), absl::StatusCode::kInvalidArgument);
  ExpectError("", absl::StatusCode::kInvalidArgument, "empty");
  ExpectError("GG", absl::StatusCode::kInvalidArgument, "ends too early");
  ExpectError("PK\3\4 and so on", absl::StatusCode::kInvalidArgument, "not a GGUF file");
  std::string bytes = Sample().Serialize();
  bytes[4] = 1;
  ExpectError(bytes, absl::StatusCode::kUnimplemented, "version 1");
  bytes[4] = 0, bytes[7] = 3;
  ExpectError(bytes, absl::StatusCode::kUnimplemented, "big-endian");
  bytes[4] = 2, bytes[7] = 0;
  EXPECT_TRUE(OpenBytes(bytes).ok());
}

TEST_F(GgufTest, EveryTruncationIsAnError) {
  const std::string bytes = Sample().Serialize();
  const size_t last_tensor_end = bytes.size() - 32 + 2;
  for (size_t size = 0; size < last_tensor_end; ++size) {
    EXPECT_EQ(OpenBytes(bytes.substr(0, size)).status().code(), absl::StatusCode::kInvalidArgument) << size;
  }
  EXPECT_TRUE(OpenBytes(bytes.substr(0, last_tensor_end)).ok());
}

TEST_F(GgufTest, HugeCountsAllocateNothing) {
  for (const uint64_t count : {uint64_t{1} << 20, uint64_t{1} << 40, std::numeric_limits<uint64_t>::max()}) {
    const std::string head = "GGUF" + GgufWriter::Raw(uint32_t{3});
    const auto raw = [](uint64_t v) { return GgufWriter::Raw(v); };
    ExpectError(head + raw(0) + raw(count) + std::string(64, 'x'), absl::StatusCode::kInvalidArgument,
                "metadata entries cannot fit");
    ExpectError(head + raw(count) + raw(0) + std::string(64, 'x'), absl::StatusCode::kInvalidArgument,
                "tensors cannot fit");
    GgufWriter string;
    string.Set("k", 8, raw(count) + "abc");
    ExpectInvalid(string, "'k': the file ends too early");
    for (const uint32_t type : {0u, 4u, 6u, 7u, 8u, 10u, 12u}) {
      GgufWriter array;
      array.Set("k", 9, GgufWriter::Raw(type) + raw(count) + std::string(64, '\0'));
      ExpectInvalid(array, "cannot fit");
    }
  }
}

// A file may have holes: that it is large enough for what its header says costs nothing.
TEST_F(GgufTest, HugeCountsInAHugeFileAllocateNothing) {
  constexpr uintmax_t kFileBytes = uintmax_t{1} << 38;
  const auto expect_error = [&](const std::string& bytes, const char* message) {
    ASSERT_TRUE(GgufWriter::WriteBytes(path_, bytes));
    std::filesystem::resize_file(path_, kFileBytes);
    const absl::Status status = GgufFile::Open(path_).status();
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << status;
    EXPECT_THAT(std::string(status.message()), HasSubstr(message));
  };
  const std::string head = "GGUF" + GgufWriter::Raw(uint32_t{3});
  const auto raw = [](uint64_t v) { return GgufWriter::Raw(v); };
  expect_error(head + raw(0) + raw(uint64_t{1} << 32),
               "4294967296 metadata entries, must be at most 1048576");
  expect_error(head + raw(uint64_t{1} << 32) + raw(0), "4294967296 tensors, must be at most 1048576");
  for (const uint32_t type : {0u, 4u, 6u, 7u, 8u, 10u, 12u}) {
    GgufWriter array;
    array.Set("k", 9, GgufWriter::Raw(type) + raw(uint64_t{1} << 32));
    expect_error(array.Serialize(), "'k': array of 4294967296 elements");
  }
}

// Values that take more memory than file.
TEST_F(GgufTest, SmallValuesAllocateNoMoreThanTheFile) {
  GgufWriter array;
  array.Set("k", 9,
            GgufWriter::Raw(uint32_t{1}) + GgufWriter::Raw(uint64_t{6} << 20) + std::string(6 << 20, 'x'));
  ExpectInvalid(array, "'k': the header would take more than");
  const std::string file = "GGUF" + GgufWriter::Raw(uint32_t{3}) + GgufWriter::Raw(uint64_t{1 << 17}) +
                           GgufWriter::Raw(uint64_t{0});
  ExpectError(file + std::string(33 << 17, '\0'), absl::StatusCode::kInvalidArgument,
              "the header would take more than");
}

TEST_F(GgufTest, BadMetadata) {
  GgufWriter w;
  w.SetU32("twice", 1);
  w.SetU32("twice", 1);
  ExpectInvalid(w, "'twice' appears twice");
  w = {};
  w.SetU32("", 1);
  ExpectInvalid(w, "must be 1 to 65535");
  w = {};
  w.Set("k", 13, "12345678");
  ExpectInvalid(w, "unknown value type 13");
  w = {};
  w.Set("k", 7, "\2");
  ExpectInvalid(w, "bool has value 2");
  w = {};
  w.Set("k", 9, GgufWriter::Raw(uint32_t{9}) + GgufWriter::Raw(uint64_t{1}) + std::string(64, '\0'));
  ExpectError(w.Serialize(), absl::StatusCode::kUnimplemented, "array of arrays");
  w = {};
  w.Set("k", 9, GgufWriter::Raw(uint32_t{99}) + GgufWriter::Raw(uint64_t{1}) + std::string(64, '\0'));
  ExpectInvalid(w, "element type 99");
  w = {};
  w.Set("k", 9, GgufWriter::Raw(uint32_t{10}) + GgufWriter::Raw(uint64_t{1}) + std::string(8, '\xff'));
  ExpectInvalid(w, "does not fit 63 bits");
  w = {};
  w.SetU64("k", std::numeric_limits<uint64_t>::max());
  const auto file = Open(w);
  ASSERT_TRUE(file.ok()) << file.status();
  EXPECT_EQ((*file)->GetInt("k").status().code(), absl::StatusCode::kInvalidArgument);
  for (const uint32_t alignment : {0u, 4u, 33u, 48u, 1u << 31}) {
    GgufWriter a = Sample();
    a.SetU32("general.alignment", alignment);
    ExpectInvalid(a, "general.alignment");
  }
}

TEST_F(GgufTest, BadTensors) {
  constexpr int64_t kMax = std::numeric_limits<int64_t>::max();
  struct Case {
    std::vector<int64_t> dims;
    uint32_t type;
    uint64_t offset;
    const char* message;
  };
  const Case cases[] = {
      {{}, 0, 0, "0 dimensions"},
      {{1, 1, 1, 1, 1}, 0, 0, "5 dimensions"},
      {{4, 0}, 0, 0, "dimension 1 is 0"},
      {{-1}, 0, 0, "dimension 0 is 18446744073709551615"},
      {{kMax, 2}, 0, 0, "elements overflows"},
      {{int64_t{1} << 32, int64_t{1} << 32}, 0, 0, "elements overflows"},
      {{kMax}, 0, 0, "size in bytes overflows"},
      {{kMax / 4}, 0, 0, "past the file's end"},
      {{33}, 8, 0, "no multiple of the 32 elements"},
      {{4}, 0, 8, "offset 8 is no multiple of the alignment 32"},
      {{4}, 0, 64, "past the file's end"},
      {{4}, 0, ~uint64_t{31}, "past the file's end"},
      {{17}, 0, 0, "past the file's end"},
  };
  for (const Case& c : cases) {
    GgufWriter w;
    w.AddTensorInfo("bad\n", c.type, c.dims, c.offset);
    ExpectError(w.Serialize() + std::string(64, '\0'), absl::StatusCode::kInvalidArgument, c.message);
    ExpectError(w.Serialize() + std::string(64, '\0'), absl::StatusCode::kInvalidArgument, "'bad\\n'");
  }
  GgufWriter w;
  w.AddTensorInfo("k", 11, {256}, 0);
  ExpectError(w.Serialize() + std::string(256, '\0'), absl::StatusCode::kUnimplemented,
              "'k': type Q3_K is not supported; supported are F32, F16, BF16, Q8_0, Q4_0, Q4_1, Q4_K");
  w = {};
  w.AddTensorInfo("k", 4000, {256}, 0);
  ExpectError(w.Serialize() + std::string(256, '\0'), absl::StatusCode::kUnimplemented, "type number 4000");
  w = {};
  w.AddTensor("same", DType::kF32, {1}, {1});
  w.AddTensor("same", DType::kF32, {1}, {1});
  ExpectInvalid(w, "'same' appears twice");
  w = {};
  w.AddTensorInfo("b", 0, {8}, 32);
  w.AddTensorInfo("a", 0, {9}, 0);
  ExpectError(w.Serialize() + std::string(64, '\0'), absl::StatusCode::kInvalidArgument,
              "'a' and 'b' overlap");
  w = {};
  w.AddTensorInfo(std::string(65, 'n'), 0, {1}, 0);
  ExpectInvalid(w, "65 bytes, must be 1 to 64");
}

// Whatever a damaged file holds, opening it ends with a file or a Status, and all tensors can be read.
TEST_F(GgufTest, DamagedFilesNeverCrash) {
  const std::string bytes = Sample().Serialize();
  std::mt19937 random(1);
  for (int round = 0; round < 600; ++round) {
    std::string damaged = bytes;
    for (int i = 0; i < 1 + round % 4; ++i) {
      static constexpr unsigned char kValues[] = {0, 1, 0x7f, 0x80, 0xff};
      damaged[random() % damaged.size()] = static_cast<char>(kValues[random() % 5]);
    }
    const auto file = OpenBytes(damaged);
    if (!file.ok()) continue;
    uint64_t sum = (*file)->ContentHash();
    for (const GgufTensor& t : (*file)->tensors()) sum += t.data[0] + t.data[t.bytes - 1];
    EXPECT_NE(sum, 0u);
  }
}

TEST(GgufWriterTest, Half) {
  EXPECT_EQ(FloatToHalf(0.0f), 0x0000);
  EXPECT_EQ(FloatToHalf(-2.0f), 0xc000);
  EXPECT_EQ(FloatToHalf(1.0f), 0x3c00);
  EXPECT_EQ(FloatToHalf(65504.0f), 0x7bff);
  EXPECT_EQ(FloatToHalf(65519.0f), 0x7bff);
  EXPECT_EQ(FloatToHalf(65520.0f), 0x7c00);
  EXPECT_EQ(FloatToHalf(0x1p-24f), 0x0001);
  EXPECT_EQ(FloatToHalf(0x1p-14f), 0x0400);
  EXPECT_EQ(FloatToHalf(0x1.ff8p-15f), 0x03ff);
  EXPECT_EQ(FloatToHalf(1.0f + 0x1p-11f), 0x3c00);      // tie, to even
  EXPECT_EQ(FloatToHalf(1.0f + 3 * 0x1p-11f), 0x3c02);  // tie, to even
  EXPECT_EQ(FloatToHalf(2.0f - 0x1p-12f), 0x4000);      // carries into the exponent
}

}  // namespace
}  // namespace phalanx
