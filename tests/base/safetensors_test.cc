#include "base/safetensors.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <cstring>
#include <filesystem>
#include <nlohmann/json.hpp>

#include "absl/strings/str_cat.h"
#include "tests/base/gguf_writer.h"

namespace phalanx {
namespace {

using nlohmann::json;
using ::testing::AllOf;
using ::testing::ElementsAre;
using ::testing::HasSubstr;

class SafetensorsTest : public ::testing::Test {
 protected:
  void SetUp() override { std::filesystem::create_directories(dir_); }
  void TearDown() override { std::filesystem::remove_all(dir_); }
  void Write(const std::string& name, std::string_view text) {
    ASSERT_TRUE(GgufWriter::WriteBytes(dir_ + "/" + name, text));
  }
  std::string Error(std::string_view header, size_t data_bytes = 64) {
    Write("x.safetensors",
          GgufWriter::Raw(uint64_t{header.size()}) + std::string(header) + std::string(data_bytes, '\0'));
    return std::string(SafetensorsFile::Open(path_).status().message());
  }
  std::string ErrorOf(const json& entry) { return Error(json{{"t", entry}}.dump()); }

  const std::string dir_ = ::testing::TempDir() + "/safetensors_test_" + std::to_string(::getpid());
  const std::string path_ = dir_ + "/x.safetensors";
};

TEST_F(SafetensorsTest, ViewsOfTheFile) {
  // A header of an odd length: the data lie at no even address.
  const std::string header =
      R"({"b":{"dtype":"BF16","shape":[2,1],"data_offsets":[4,8]},"a":{"dtype":"F32","shape":[],"data_offsets":[0,4]},)"
      R"("__metadata__":{"k":"v"}} )";
  Write("x.safetensors", GgufWriter::Raw(uint64_t{header.size()}) + header + "abcdefgh");
  const auto file = SafetensorsFile::Open(path_);
  ASSERT_TRUE(file.ok()) << file.status();
  ASSERT_EQ((*file)->tensors().size(), 2u);
  const SafetensorsTensor &a = (*file)->tensors()[0], &b = (*file)->tensors()[1];
  EXPECT_EQ(a.name, "a");
  EXPECT_EQ(a.elements, 1);
  EXPECT_EQ(std::memcmp(a.data, "abcd", 4), 0);
  EXPECT_EQ(b.dtype, "BF16");
  EXPECT_THAT(b.shape, ElementsAre(2, 1));
  EXPECT_EQ(b.bytes, 4);
  EXPECT_EQ(std::memcmp(b.data, "efgh", 4), 0);
}

// Texts of a few bytes a value, which take forty times as much once they are parsed.
std::string Repeated(std::string_view piece, int times) {
  std::string text;
  for (int i = 0; i < times; ++i) text += piece;
  return text;
}

TEST_F(SafetensorsTest, TakesNoMemoryBeyondTheFile) {
  EXPECT_THAT(Error(absl::StrCat("{\"a\":[", Repeated("{},", 300'000), "1]}")),
              AllOf(HasSubstr(path_), HasSubstr("bytes of memory")));
  EXPECT_THAT(Error(absl::StrCat("{\"a\":[", Repeated("1,", 600'000), "1]}")), HasSubstr("bytes of memory"));
  Write("model.safetensors.index.json", absl::StrCat("{\"weight_map\":[", Repeated("[],", 600'000), "1]}"));
  EXPECT_THAT(std::string(FindSafetensors(dir_).status().message()),
              AllOf(HasSubstr(dir_ + "/model.safetensors.index.json"), HasSubstr("bytes of memory")));
}

TEST_F(SafetensorsTest, NamesWhatIsWrong) {
  EXPECT_EQ(ErrorOf({{"dtype", "F32"}, {"shape", {4, 4}}, {"data_offsets", {0, 64}}}), "");
  EXPECT_EQ(ErrorOf({{"dtype", "F32"}, {"shape", json::array()}, {"data_offsets", {0, 4}}}), "");
  EXPECT_THAT(ErrorOf(7), HasSubstr("tensor 't' is 7"));
  EXPECT_THAT(ErrorOf({{"dtype", "Q7"}, {"shape", {4}}, {"data_offsets", {0, 16}}}),
              HasSubstr("dtype is 'Q7'"));
  EXPECT_THAT(ErrorOf({{"dtype", "F32"}, {"shape", {-4}}, {"data_offsets", {0, 16}}}),
              HasSubstr("shape is -4"));
  EXPECT_THAT(ErrorOf({{"dtype", "F32"}, {"shape", {1 << 30, 1 << 30, 64}}, {"data_offsets", {0, 16}}}),
              HasSubstr("product is below 2^63"));
  EXPECT_THAT(ErrorOf({{"dtype", "F32"}, {"shape", {4}}, {"data_offsets", {0, 12}}}), HasSubstr("12 bytes"));
  EXPECT_THAT(ErrorOf({{"dtype", "F32"}, {"shape", {4}}, {"data_offsets", {56, 72}}}),
              HasSubstr("56 and 72 in data of 64"));
  EXPECT_THAT(ErrorOf({{"dtype", "F32"}, {"shape", {4}}, {"data_offsets", {16, 0}}}), HasSubstr("16 and 0"));
  EXPECT_THAT(ErrorOf({{"dtype", "F32"}, {"shape", {4}}}), HasSubstr("data_offsets is missing"));
  constexpr const char* kX = R"("x": {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]})";
  EXPECT_EQ(
      Error(absl::StrCat("{", kX, R"(, "e": {"dtype": "F32", "shape": [0, 9], "data_offsets": [8, 8]}})")),
      "");
  EXPECT_THAT(Error(absl::StrCat("{", kX, ", ", kX, "}")), HasSubstr("tensor 'x' appears twice"));
  EXPECT_THAT(
      Error(absl::StrCat("{", kX, R"(, "y": {"dtype": "F32", "shape": [4], "data_offsets": [12, 28]}})")),
      HasSubstr("tensors 'x' and 'y' overlap"));
  EXPECT_THAT(Error(absl::StrCat("{", kX, "}"), 15), HasSubstr("0 and 16 in data of 15 bytes"));
  EXPECT_THAT(Error("[]"), HasSubstr("its header is no object"));
  EXPECT_THAT(Error("{\"x"), HasSubstr("not valid JSON"));
  Write("x.safetensors", GgufWriter::Raw(uint64_t{1} << 60));
  EXPECT_THAT(std::string(SafetensorsFile::Open(path_).status().message()),
              HasSubstr("a header of 1152921504606846976 bytes in a file of 8"));
  Write("x.safetensors", "");
  EXPECT_THAT(std::string(SafetensorsFile::Open(path_).status().message()), HasSubstr("the file is empty"));
  EXPECT_EQ(SafetensorsFile::Open(dir_ + "/none").status().code(), absl::StatusCode::kNotFound);
}

TEST_F(SafetensorsTest, FindsAModelsFiles) {
  const auto files = [&] { return FindSafetensors(dir_)->files; };
  EXPECT_TRUE(files().empty());
  Write("b.safetensors", "");
  Write("a.safetensors", "");
  EXPECT_THAT(files(), ElementsAre("a.safetensors", "b.safetensors"));
  Write("model.safetensors", "");
  EXPECT_THAT(files(), ElementsAre("model.safetensors"));
  Write("model.safetensors.index.json", R"({"weight_map": {"x": "b.safetensors", "y": "b.safetensors"}})");
  EXPECT_THAT(files(), ElementsAre("b.safetensors"));
  EXPECT_EQ(FindSafetensors(dir_)->weight_map.size(), 2u);
  for (const char* name : {R"("../b.safetensors")", R"("")", "7", R"("a\u0000b")"}) {
    Write("model.safetensors.index.json", absl::StrCat(R"({"weight_map": {"x": )", name, "}}"));
    EXPECT_THAT(std::string(FindSafetensors(dir_).status().message()),
                HasSubstr("must be a file of this folder"));
  }
  Write("model.safetensors.index.json", "[]");
  EXPECT_THAT(std::string(FindSafetensors(dir_).status().message()),
              HasSubstr("weight_map must be an object"));
}

}  // namespace
}  // namespace phalanx
