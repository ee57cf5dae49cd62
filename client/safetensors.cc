#include "client/safetensors.h"

#include <cstring>
#include <filesystem>
#include <fstream>
#include <system_error>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "base/json_file.h"
#include "base/status_macros.h"
#include "base/strings.h"

namespace phalanx {
namespace {

using nlohmann::json;

constexpr uint64_t kMaxHeaderBytes = 100'000'000;  // the format's limit

struct DtypeBits {
  std::string_view name;
  int64_t bits;
};
constexpr DtypeBits kDtypes[] = {
    {"F64", 64}, {"F32", 32}, {"F16", 16}, {"BF16", 16},   {"F8_E4M3", 8}, {"F8_E5M2", 8},
    {"I64", 64}, {"I32", 32}, {"I16", 16}, {"I8", 8},      {"U64", 64},    {"U32", 32},
    {"U16", 16}, {"U8", 8},   {"BOOL", 8}, {"F8_E8M0", 8}, {"F4", 4},
};

absl::StatusOr<SafetensorsTensor> ReadTensor(const std::string& path, const std::string& name,
                                             const json& entry, uint64_t data_bytes) {
  const std::string where = absl::StrCat(path, ": tensor ", Quote(name));
  if (!entry.is_object()) {
    return absl::InvalidArgumentError(absl::StrCat(where, " is ", ShowJson(entry), ", must be an object"));
  }
  const JsonKeys keys(entry, where);
  SafetensorsTensor tensor{.name = name};
  PHX_RETURN_IF_ERROR(keys.OptionalString("dtype", &tensor.dtype));
  int64_t bits = 0;
  for (const DtypeBits& dtype : kDtypes) {
    if (dtype.name == tensor.dtype) bits = dtype.bits;
  }
  if (bits == 0) return keys.Bad("dtype", json(tensor.dtype), "a type of safetensors");
  const json* shape = keys.Find("shape");
  if (shape == nullptr || !shape->is_array()) return keys.Missing("shape", "an array of sizes");
  tensor.elements = 1;
  for (const json& size : *shape) {
    if (!size.is_number_unsigned() || size.get<uint64_t>() > uint64_t{1} << 62 ||
        __builtin_mul_overflow(tensor.elements, size.get<int64_t>(), &tensor.elements)) {
      return keys.Bad("shape", size, "sizes from 0 whose product is below 2^63");
    }
  }
  const json* offsets = keys.Find("data_offsets");
  constexpr std::string_view kMust = "an array of two offsets into the file's data, the first not the larger";
  if (offsets == nullptr) return keys.Missing("data_offsets", kMust);
  if (!offsets->is_array() || offsets->size() != 2 || !(*offsets)[0].is_number_unsigned() ||
      !(*offsets)[1].is_number_unsigned()) {
    return keys.Bad("data_offsets", *offsets, kMust);
  }
  const auto begin = (*offsets)[0].get<uint64_t>(), end = (*offsets)[1].get<uint64_t>();
  if (begin > end || end > data_bytes) {
    return absl::InvalidArgumentError(absl::StrCat(where, ": data_offsets are ", begin, " and ", end,
                                                   " in data of ", data_bytes, " bytes"));
  }
  tensor.bytes = static_cast<int64_t>(end - begin);
  const __int128 wanted = (static_cast<__int128>(tensor.elements) * bits + 7) / 8;
  if (wanted != tensor.bytes) {
    return absl::InvalidArgumentError(
        absl::StrCat(where, ": ", tensor.bytes, " bytes, its ", tensor.dtype, " [",
                     absl::StrJoin(shape->get<std::vector<int64_t>>(), ", "), "] takes another number"));
  }
  return tensor;
}

}  // namespace

absl::StatusOr<std::vector<SafetensorsTensor>> ReadSafetensorsHeader(const std::string& path) {
  std::error_code error;
  if (!std::filesystem::is_regular_file(path, error)) {
    if (!std::filesystem::exists(path, error)) {
      return absl::NotFoundError(absl::StrCat(path, ": no such file"));
    }
    return absl::InvalidArgumentError(absl::StrCat(path, ": not a regular file"));
  }
  const uint64_t size = std::filesystem::file_size(path, error);
  std::ifstream file(path, std::ios::binary);
  uint64_t header_bytes = 0;
  char raw[sizeof(header_bytes)];
  if (error || !file.read(raw, sizeof(raw))) {
    return absl::InvalidArgumentError(absl::StrCat(path, ": cannot be read, or too short for safetensors"));
  }
  std::memcpy(&header_bytes, raw, sizeof(raw));
  if (header_bytes > kMaxHeaderBytes || header_bytes > size - sizeof(raw)) {
    return absl::InvalidArgumentError(
        absl::StrCat(path, ": not safetensors: a header of ", header_bytes, " bytes in a file of ", size));
  }
  std::string text(header_bytes, '\0');
  if (!file.read(text.data(), static_cast<std::streamsize>(header_bytes))) {
    return absl::InvalidArgumentError(absl::StrCat(path, ": its header cannot be read"));
  }
  PHX_ASSIGN_OR_RETURN(const json header, ParseJson(text, path));
  if (!header.is_object()) return absl::InvalidArgumentError(absl::StrCat(path, ": its header is no object"));
  std::vector<SafetensorsTensor> tensors;
  for (const auto& [name, entry] : header.items()) {
    if (name == "__metadata__") continue;
    PHX_ASSIGN_OR_RETURN(SafetensorsTensor tensor,
                         ReadTensor(path, name, entry, size - sizeof(raw) - header_bytes));
    tensors.push_back(std::move(tensor));
  }
  return tensors;
}

}  // namespace phalanx
