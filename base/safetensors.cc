#include "base/safetensors.h"

#include <algorithm>
#include <cstring>
#include <filesystem>
#include <set>
#include <system_error>
#include <utility>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "base/json_file.h"
#include "base/status_macros.h"
#include "base/strings.h"

namespace phalanx {
namespace {

using nlohmann::json;

constexpr uint64_t kMaxHeaderBytes = 100'000'000;      // the format's limit
constexpr int64_t kHeaderMemory = int64_t{16} << 20;   // for what the header becomes, besides the file's size
constexpr int64_t kMaxIndexBytes = int64_t{64} << 20;  // R1's is 9 MB

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
                                             const json& entry, const uint8_t* data, uint64_t data_bytes) {
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
    tensor.shape.push_back(size.get<int64_t>());
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
  tensor.data = data + begin;
  tensor.bytes = static_cast<int64_t>(end - begin);
  const __int128 wanted = (static_cast<__int128>(tensor.elements) * bits + 7) / 8;
  if (wanted != tensor.bytes) {
    return absl::InvalidArgumentError(absl::StrCat(where, ": ", tensor.bytes, " bytes, its ", tensor.dtype,
                                                   " [", absl::StrJoin(tensor.shape, ", "),
                                                   "] takes another number"));
  }
  return tensor;
}

// Looks at the names of the header's tensors only: nlohmann's objects keep the last of two equal ones.
class NameChecker : public nlohmann::json_sax<json> {
 public:
  const std::string& twice() const { return twice_; }

  bool null() override { return true; }
  bool boolean(bool) override { return true; }
  bool number_integer(number_integer_t) override { return true; }
  bool number_unsigned(number_unsigned_t) override { return true; }
  bool number_float(number_float_t, const string_t&) override { return true; }
  bool string(string_t&) override { return true; }
  bool binary(binary_t&) override { return true; }
  bool start_object(std::size_t) override { return ++depth_ > 0; }
  bool start_array(std::size_t) override { return ++depth_ > 0; }
  bool end_object() override { return --depth_ >= 0; }
  bool end_array() override { return --depth_ >= 0; }
  bool key(string_t& name) override {
    if (depth_ != 1 || names_.insert(name).second) return true;
    twice_ = name;
    return false;
  }
  bool parse_error(std::size_t, const std::string&, const nlohmann::detail::exception&) override {
    return false;
  }

 private:
  int depth_ = 0;
  std::set<std::string> names_;
  std::string twice_;
};

absl::Status CheckOverlaps(const std::string& path, const std::vector<SafetensorsTensor>& tensors) {
  std::vector<const SafetensorsTensor*> in_order;
  for (const SafetensorsTensor& tensor : tensors) {
    if (tensor.bytes > 0) in_order.push_back(&tensor);
  }
  std::sort(in_order.begin(), in_order.end(),
            [](const SafetensorsTensor* a, const SafetensorsTensor* b) { return a->data < b->data; });
  for (size_t i = 1; i < in_order.size(); ++i) {
    const SafetensorsTensor& before = *in_order[i - 1];
    if (in_order[i]->data >= before.data + before.bytes) continue;
    return absl::InvalidArgumentError(
        absl::StrCat(path, ": tensors ", Quote(before.name), " and ", Quote(in_order[i]->name), " overlap"));
  }
  return absl::OkStatus();
}

bool Exists(const std::string& path) {
  std::error_code error;
  return std::filesystem::exists(path, error);
}

}  // namespace

absl::StatusOr<std::unique_ptr<SafetensorsFile>> SafetensorsFile::Open(const std::string& path) {
  std::unique_ptr<SafetensorsFile> file(new SafetensorsFile());
  PHX_ASSIGN_OR_RETURN(file->map_, MappedFile::Open(path, "a safetensors file"));
  const auto size = static_cast<uint64_t>(file->map_->bytes());
  uint64_t header_bytes = 0;
  if (size < sizeof(header_bytes)) {
    return absl::InvalidArgumentError(absl::StrCat(path, ": ", size, " bytes are too short for safetensors"));
  }
  std::memcpy(&header_bytes, file->map_->data(), sizeof(header_bytes));
  if (header_bytes > kMaxHeaderBytes || header_bytes > size - sizeof(header_bytes)) {
    return absl::InvalidArgumentError(
        absl::StrCat(path, ": not safetensors: a header of ", header_bytes, " bytes in a file of ", size));
  }
  file->header_bytes_ = static_cast<int64_t>(sizeof(header_bytes) + header_bytes);
  const std::string_view text(reinterpret_cast<const char*>(file->map_->data()) + sizeof(header_bytes),
                              header_bytes);
  // In proportion to the whole file, since a header is little of it, and to itself, since a file may have
  // holes.
  const auto max_memory = kHeaderMemory + static_cast<int64_t>(std::min(size, 8 * header_bytes));
  PHX_ASSIGN_OR_RETURN(const json header, ParseJson(text, path, max_memory));
  if (!header.is_object()) return absl::InvalidArgumentError(absl::StrCat(path, ": its header is no object"));
  NameChecker names;
  json::sax_parse(text.begin(), text.end(), &names);
  if (!names.twice().empty()) {
    return absl::InvalidArgumentError(
        absl::StrCat(path, ": tensor ", Quote(names.twice()), " appears twice"));
  }
  const uint8_t* data = file->map_->data() + file->header_bytes_;
  for (const auto& [name, entry] : header.items()) {
    if (name == "__metadata__") continue;
    PHX_ASSIGN_OR_RETURN(
        SafetensorsTensor tensor,
        ReadTensor(path, name, entry, data, size - static_cast<uint64_t>(file->header_bytes_)));
    file->tensors_.push_back(std::move(tensor));
  }
  PHX_RETURN_IF_ERROR(CheckOverlaps(path, file->tensors_));
  return file;
}

uint64_t SafetensorsFile::ContentHash() const {
  uint64_t hash = Fnv1a(kFnvOffset, map_->data(), header_bytes_);
  const int64_t file_bytes = map_->bytes();
  hash = Fnv1a(hash, &file_bytes, sizeof(file_bytes));
  for (const SafetensorsTensor& tensor : tensors_) hash = HashSamples(hash, tensor.data, tensor.bytes);
  return hash;
}

absl::StatusOr<SafetensorsIndex> FindSafetensors(const std::string& directory) {
  SafetensorsIndex out;
  const std::string index_path = directory + "/model.safetensors.index.json";
  if (Exists(index_path)) {
    out.path = index_path;
    PHX_ASSIGN_OR_RETURN(const json index, ReadJsonFile(index_path, kMaxIndexBytes));
    const auto map = index.is_object() ? index.find("weight_map") : index.end();
    if (!index.is_object() || map == index.end() || !map->is_object()) {
      return absl::InvalidArgumentError(
          absl::StrCat(index_path, ": weight_map must be an object of tensors and their files"));
    }
    std::set<std::string> names;
    for (const auto& [tensor, name] : map->items()) {
      const std::string text = name.is_string() ? name.get<std::string>() : "";
      if (text.empty() || text.find('/') != std::string::npos || text.find('\0') != std::string::npos) {
        return absl::InvalidArgumentError(absl::StrCat(index_path, ": weight_map: ", Quote(tensor), " is in ",
                                                       ShowJson(name), ", must be a file of this folder"));
      }
      names.insert(text);
      out.weight_map.emplace(tensor, text);
    }
    out.files.assign(names.begin(), names.end());
    return out;
  }
  if (Exists(directory + "/model.safetensors")) {
    out.files = {"model.safetensors"};
    return out;
  }
  std::error_code error;
  for (const auto& entry : std::filesystem::directory_iterator(directory, error)) {
    if (entry.path().extension() == ".safetensors") out.files.push_back(entry.path().filename().string());
  }
  if (error) return absl::UnavailableError(absl::StrCat(directory, ": ", error.message()));
  std::sort(out.files.begin(), out.files.end());
  return out;
}

}  // namespace phalanx
