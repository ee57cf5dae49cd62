#include "base/gguf.h"

#include <algorithm>
#include <bit>
#include <cstring>
#include <limits>
#include <optional>
#include <utility>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "base/ggml_types.h"
#include "base/status_macros.h"
#include "base/strings.h"

namespace phalanx {
namespace {

static_assert(std::endian::native == std::endian::little, "GGUF is read in place, little endian");

constexpr uint32_t kMagic = 0x46554747;  // "GGUF"
constexpr int64_t kDefaultAlignment = 32;
constexpr int64_t kMaxAlignment = int64_t{1} << 30;
constexpr uint64_t kMaxKeyBytes = 65535;      // the format's limit
constexpr uint64_t kMaxTensorNameBytes = 64;  // the format's limit
constexpr uint32_t kMaxDims = 4;
// A file may be of any size, holes included, and what a header takes in memory must not follow from that.
constexpr uint64_t kMaxCount = 1 << 20;          // of metadata entries and of tensors
constexpr uint64_t kMaxArrayElements = 8 << 20;  // of all arrays together
// What the header may take in memory, besides twice the file's size. Estimates of what its parts take:
constexpr uint64_t kHeaderMemory = 16 << 20;
constexpr uint64_t kEntryMemory = 160;
constexpr uint64_t kTensorMemory = 480;
// The least a metadata entry and a tensor's description can take in the file: bounds for their counts.
constexpr uint64_t kMinEntryBytes = 8 + 1 + 4 + 1;
constexpr uint64_t kMinTensorInfoBytes = 8 + 1 + 4 + 8 + 4 + 8;

enum ValueType : uint32_t {
  kU8,
  kI8,
  kU16,
  kI16,
  kU32,
  kI32,
  kF32,
  kBool,
  kString,
  kArray,
  kU64,
  kI64,
  kF64,
  kValueTypes
};

// Bytes an element of an array takes at least; 0 where a type cannot be in an array we read.
constexpr uint64_t kMinElementBytes[kValueTypes] = {1, 1, 2, 2, 4, 4, 4, 1, 8, 0, 8, 8, 8};

std::optional<DType> DTypeOfGgml(uint32_t type) {
  switch (type) {
    case 0:
      return DType::kF32;
    case 1:
      return DType::kF16;
    case 2:
      return DType::kQ4_0;
    case 3:
      return DType::kQ4_1;
    case 8:
      return DType::kQ8_0;
    case 12:
      return DType::kQ4_K;
    case 13:
      return DType::kQ5_K;
    case 14:
      return DType::kQ6_K;
    case 30:
      return DType::kBF16;
    default:
      return std::nullopt;
  }
}

// Reads little-endian values from a byte range; every read is checked against its end.
class Cursor {
 public:
  Cursor(const uint8_t* data, uint64_t size)
      : data_(data), size_(size), memory_left_(kHeaderMemory + 2 * size) {}

  uint64_t offset() const { return offset_; }
  uint64_t left() const { return size_ - offset_; }

  template <typename T>
  absl::StatusOr<T> Read() {
    if (left() < sizeof(T)) return Truncated(sizeof(T));
    T value;
    std::memcpy(&value, data_ + offset_, sizeof(T));
    offset_ += sizeof(T);
    return value;
  }

  // Takes the memory of a part of the header.
  absl::Status TakeMemory(uint64_t bytes) {
    if (bytes > memory_left_) {
      return absl::InvalidArgumentError(absl::StrCat(
          "the header would take more than ", kHeaderMemory + 2 * size_, " bytes of memory, twice the file"));
    }
    memory_left_ -= bytes;
    return absl::OkStatus();
  }

  // Takes `count` elements of an array, `bytes` each in memory.
  absl::Status CountElements(uint64_t count, uint64_t bytes) {
    if (count > elements_left_) {
      return absl::InvalidArgumentError(
          absl::StrCat("array of ", count, " elements; all arrays together may have ", kMaxArrayElements,
                       ", of which ", elements_left_, " are left"));
    }
    elements_left_ -= count;
    return TakeMemory(count * bytes);
  }

  absl::StatusOr<std::string_view> ReadString() {
    PHX_ASSIGN_OR_RETURN(const uint64_t length, Read<uint64_t>());
    if (left() < length) return Truncated(length);
    std::string_view s(reinterpret_cast<const char*>(data_ + offset_), length);
    offset_ += length;
    return s;
  }

 private:
  absl::Status Truncated(uint64_t wanted) const {
    return absl::InvalidArgumentError(absl::StrCat(
        "the file ends too early: ", wanted, " bytes wanted at offset ", offset_, ", ", left(), " left"));
  }

  const uint8_t* data_;
  uint64_t size_;
  uint64_t offset_ = 0;
  uint64_t elements_left_ = kMaxArrayElements;
  uint64_t memory_left_;
};

absl::Status Annotate(const absl::Status& status, const std::string& where) {
  return absl::Status(status.code(), absl::StrCat(where, ": ", status.message()));
}

absl::StatusOr<int64_t> ToInt64(uint64_t v) {
  if (v > static_cast<uint64_t>(std::numeric_limits<int64_t>::max())) {
    return absl::InvalidArgumentError(absl::StrCat("value ", v, " does not fit 63 bits"));
  }
  return static_cast<int64_t>(v);
}

absl::StatusOr<bool> ReadBool(Cursor& in) {
  PHX_ASSIGN_OR_RETURN(const uint8_t byte, in.Read<uint8_t>());
  if (byte > 1) return absl::InvalidArgumentError(absl::StrCat("bool has value ", byte, ", must be 0 or 1"));
  return byte == 1;
}

absl::StatusOr<int64_t> ReadInteger(Cursor& in, uint32_t type) {
  switch (type) {
    case kU8:
      return in.Read<uint8_t>();
    case kI8:
      return in.Read<int8_t>();
    case kU16:
      return in.Read<uint16_t>();
    case kI16:
      return in.Read<int16_t>();
    case kU32:
      return in.Read<uint32_t>();
    case kI32:
      return in.Read<int32_t>();
    case kI64:
      return in.Read<int64_t>();
    case kBool:
      return ReadBool(in);
    default: {
      PHX_ASSIGN_OR_RETURN(const uint64_t value, in.Read<uint64_t>());
      return ToInt64(value);
    }
  }
}

absl::StatusOr<GgufValue> ReadArray(Cursor& in) {
  PHX_ASSIGN_OR_RETURN(const uint32_t type, in.Read<uint32_t>());
  PHX_ASSIGN_OR_RETURN(const uint64_t count, in.Read<uint64_t>());
  if (type >= kValueTypes) {
    return absl::InvalidArgumentError(
        absl::StrCat("unknown array element type ", type, ", known are 0 to 12"));
  }
  if (type == kArray) {
    return absl::UnimplementedError("array of arrays; arrays of numbers, bools and strings are supported");
  }
  if (count > in.left() / kMinElementBytes[type]) {
    return absl::InvalidArgumentError(
        absl::StrCat("array of ", count, " elements cannot fit the ", in.left(), " bytes left in the file"));
  }
  PHX_RETURN_IF_ERROR(in.CountElements(count, type == kString ? sizeof(std::string_view) : sizeof(int64_t)));
  if (type == kString) {
    std::vector<std::string_view> strings;
    strings.reserve(count);
    for (uint64_t i = 0; i < count; ++i) {
      absl::StatusOr<std::string_view> s = in.ReadString();
      if (!s.ok()) return Annotate(s.status(), absl::StrCat("element ", i, " of ", count));
      strings.push_back(*s);
    }
    return GgufValue(std::move(strings));
  }
  if (type == kF32 || type == kF64) {
    std::vector<double> numbers;
    numbers.reserve(count);
    for (uint64_t i = 0; i < count; ++i) {
      if (type == kF32) {
        PHX_ASSIGN_OR_RETURN(const float f, in.Read<float>());
        numbers.push_back(f);
      } else {
        PHX_ASSIGN_OR_RETURN(const double d, in.Read<double>());
        numbers.push_back(d);
      }
    }
    return GgufValue(std::move(numbers));
  }
  std::vector<int64_t> integers;
  integers.reserve(count);
  for (uint64_t i = 0; i < count; ++i) {
    absl::StatusOr<int64_t> value = ReadInteger(in, type);
    if (!value.ok()) return Annotate(value.status(), absl::StrCat("element ", i, " of ", count));
    integers.push_back(*value);
  }
  return GgufValue(std::move(integers));
}

absl::StatusOr<GgufValue> ReadValue(Cursor& in) {
  PHX_ASSIGN_OR_RETURN(const uint32_t type, in.Read<uint32_t>());
  switch (type) {
    case kF32: {
      PHX_ASSIGN_OR_RETURN(const float value, in.Read<float>());
      return GgufValue(std::in_place_type<double>, value);
    }
    case kF64: {
      PHX_ASSIGN_OR_RETURN(const double value, in.Read<double>());
      return GgufValue(std::in_place_type<double>, value);
    }
    case kBool: {
      PHX_ASSIGN_OR_RETURN(const bool value, ReadBool(in));
      return GgufValue(std::in_place_type<bool>, value);
    }
    case kString: {
      PHX_ASSIGN_OR_RETURN(const std::string_view value, in.ReadString());
      return GgufValue(std::in_place_type<std::string_view>, value);
    }
    case kArray:
      return ReadArray(in);
    case kU64: {
      PHX_ASSIGN_OR_RETURN(const uint64_t value, in.Read<uint64_t>());
      return GgufValue(std::in_place_type<uint64_t>, value);
    }
    case kU8:
    case kU16:
    case kU32: {
      PHX_ASSIGN_OR_RETURN(const int64_t value, ReadInteger(in, type));
      return GgufValue(std::in_place_type<uint64_t>, static_cast<uint64_t>(value));
    }
    case kI8:
    case kI16:
    case kI32:
    case kI64: {
      PHX_ASSIGN_OR_RETURN(const int64_t value, ReadInteger(in, type));
      return GgufValue(std::in_place_type<int64_t>, value);
    }
    default:
      return absl::InvalidArgumentError(absl::StrCat("unknown value type ", type, ", known are 0 to 12"));
  }
}

// A tensor's description; `offset` is relative to the start of the data.
struct TensorInfo {
  GgufTensor tensor;
  uint64_t offset = 0;
};

absl::StatusOr<TensorInfo> ReadTensorInfo(Cursor& in, bool any_type) {
  TensorInfo info;
  PHX_ASSIGN_OR_RETURN(const std::string_view name, in.ReadString());
  if (name.empty() || name.size() > kMaxTensorNameBytes) {
    return absl::InvalidArgumentError(
        absl::StrCat("tensor name of ", name.size(), " bytes, must be 1 to ", kMaxTensorNameBytes));
  }
  info.tensor.name = std::string(name);
  const auto fail = [&name](absl::StatusCode code, const std::string& what) {
    return absl::Status(code, absl::StrCat("tensor ", Quote(name), ": ", what));
  };
  PHX_ASSIGN_OR_RETURN(const uint32_t num_dims, in.Read<uint32_t>());
  if (num_dims < 1 || num_dims > kMaxDims) {
    return fail(absl::StatusCode::kInvalidArgument,
                absl::StrCat(num_dims, " dimensions, must be 1 to ", kMaxDims));
  }
  int64_t elements = 1;
  for (uint32_t i = 0; i < num_dims; ++i) {
    PHX_ASSIGN_OR_RETURN(const uint64_t raw, in.Read<uint64_t>());
    const auto dim = static_cast<int64_t>(raw);
    if (dim < 1) {
      return fail(absl::StatusCode::kInvalidArgument,
                  absl::StrCat("dimension ", i, " is ", raw, ", must be 1 to 2^63-1"));
    }
    if (__builtin_mul_overflow(elements, dim, &elements)) {
      return fail(absl::StatusCode::kInvalidArgument, "the number of elements overflows 63 bits");
    }
    info.tensor.dims.push_back(dim);
  }
  PHX_ASSIGN_OR_RETURN(const uint32_t type, in.Read<uint32_t>());
  const GgmlType* ggml = FindGgmlType(type);
  const std::optional<DType> dtype = DTypeOfGgml(type);
  if (ggml == nullptr || (!dtype && !any_type)) {
    return fail(
        absl::StatusCode::kUnimplemented,
        absl::StrCat("type ", ggml == nullptr ? absl::StrCat("number ", type) : ToAbsl(ggml->name),
                     " is not supported; supported are F32, F16, BF16, Q8_0, Q4_0, Q4_1, Q4_K, Q5_K, Q6_K"));
  }
  if (dtype) {
    info.tensor.dtype = *dtype;
  } else {
    info.tensor.foreign_type = ggml->name;
  }
  if (info.tensor.dims[0] % ggml->block_elements != 0) {
    return fail(absl::StatusCode::kInvalidArgument,
                absl::StrCat("innermost dimension ", info.tensor.dims[0], " is no multiple of the ",
                             ggml->block_elements, " elements of a ", ToAbsl(ggml->name), " block"));
  }
  if (__builtin_mul_overflow(elements / ggml->block_elements, ggml->block_bytes, &info.tensor.bytes)) {
    return fail(absl::StatusCode::kInvalidArgument, "its size in bytes overflows 63 bits");
  }
  PHX_ASSIGN_OR_RETURN(info.offset, in.Read<uint64_t>());
  return info;
}

// Of things that take `least` bytes each.
absl::Status CheckCount(const Cursor& in, uint64_t count, const char* things, uint64_t least) {
  if (count > in.left() / least) {
    return absl::InvalidArgumentError(
        absl::StrCat(count, " ", things, " cannot fit the ", in.left(), " bytes left in the file"));
  }
  if (count <= kMaxCount) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat(count, " ", things, ", must be at most ", kMaxCount));
}

absl::Status CheckVersion(uint32_t version) {
  if (version == 2 || version == 3) return absl::OkStatus();
  if (version == 0x02000000 || version == 0x03000000) {
    return absl::UnimplementedError("a big-endian GGUF file; only little endian is supported");
  }
  return absl::UnimplementedError(absl::StrCat("GGUF version ", version, " is not supported; 2 and 3 are"));
}

// Sets data pointers. Tensors must lie inside [data_start, size), aligned, and not overlap.
absl::Status PlaceTensors(std::vector<TensorInfo>& infos, const uint8_t* map, uint64_t size,
                          uint64_t data_start, uint64_t alignment) {
  for (TensorInfo& info : infos) {
    const auto bytes = static_cast<uint64_t>(info.tensor.bytes);
    if (info.offset % alignment != 0) {
      return absl::InvalidArgumentError(absl::StrCat("tensor ", Quote(info.tensor.name), ": offset ",
                                                     info.offset, " is no multiple of the alignment ",
                                                     alignment));
    }
    if (data_start > size || info.offset > size - data_start || bytes > size - data_start - info.offset) {
      return absl::InvalidArgumentError(absl::StrCat(
          "tensor ", Quote(info.tensor.name), ": ", bytes, " bytes at offset ", info.offset,
          " of the data (which starts at ", data_start, ") reach past the file's end at ", size));
    }
    info.tensor.data = map + data_start + info.offset;
  }
  std::vector<const TensorInfo*> by_offset;
  by_offset.reserve(infos.size());
  for (const TensorInfo& info : infos) by_offset.push_back(&info);
  std::sort(by_offset.begin(), by_offset.end(),
            [](const TensorInfo* a, const TensorInfo* b) { return a->offset < b->offset; });
  for (size_t i = 1; i < by_offset.size(); ++i) {
    const TensorInfo& before = *by_offset[i - 1];
    if (by_offset[i]->offset < before.offset + static_cast<uint64_t>(before.tensor.bytes)) {
      return absl::InvalidArgumentError(absl::StrCat("tensors ", Quote(before.tensor.name), " and ",
                                                     Quote(by_offset[i]->tensor.name), " overlap at offset ",
                                                     by_offset[i]->offset));
    }
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<std::unique_ptr<GgufFile>> GgufFile::Open(const std::string& path, TensorTypes types) {
  PHX_ASSIGN_OR_RETURN(std::unique_ptr<GgufFile> file, OpenPart(path, types));
  return JoinParts(std::move(file), types);
}

absl::StatusOr<std::unique_ptr<GgufFile>> GgufFile::OpenPart(const std::string& path, TensorTypes types) {
  PHX_ASSIGN_OR_RETURN(std::unique_ptr<MappedFile> map, MappedFile::Open(path, "a GGUF file"));
  std::unique_ptr<GgufFile> file(new GgufFile());
  file->path_ = path;
  file->map_ = std::move(map);
  if (const absl::Status status = file->Parse(types); !status.ok()) return Annotate(status, path);
  return file;
}

absl::Status GgufFile::Parse(TensorTypes types) {
  const auto size = static_cast<uint64_t>(map_->bytes());
  Cursor in(map_->data(), size);
  PHX_ASSIGN_OR_RETURN(const uint32_t magic, in.Read<uint32_t>());
  if (magic != kMagic) {
    return absl::InvalidArgumentError("not a GGUF file: it does not begin with the bytes 'GGUF'");
  }
  PHX_ASSIGN_OR_RETURN(const uint32_t version, in.Read<uint32_t>());
  PHX_RETURN_IF_ERROR(CheckVersion(version));
  PHX_ASSIGN_OR_RETURN(const uint64_t num_tensors, in.Read<uint64_t>());
  PHX_ASSIGN_OR_RETURN(const uint64_t num_entries, in.Read<uint64_t>());
  PHX_RETURN_IF_ERROR(CheckCount(in, num_entries, "metadata entries", kMinEntryBytes));
  for (uint64_t i = 0; i < num_entries; ++i) {
    absl::StatusOr<std::string_view> key = in.ReadString();
    if (!key.ok()) return Annotate(key.status(), absl::StrCat("key of metadata entry ", i));
    if (key->empty() || key->size() > kMaxKeyBytes) {
      return absl::InvalidArgumentError(absl::StrCat("key of metadata entry ", i, " has ", key->size(),
                                                     " bytes, must be 1 to ", kMaxKeyBytes));
    }
    PHX_RETURN_IF_ERROR(in.TakeMemory(kEntryMemory + key->size()));
    absl::StatusOr<GgufValue> value = ReadValue(in);
    if (!value.ok()) return Annotate(value.status(), absl::StrCat("key ", Quote(*key)));
    if (!metadata_.emplace(*key, *std::move(value)).second) {
      return absl::InvalidArgumentError(absl::StrCat("key ", Quote(*key), " appears twice"));
    }
  }

  int64_t alignment = kDefaultAlignment;
  if (FindValue("general.alignment") != nullptr) {
    PHX_ASSIGN_OR_RETURN(alignment, GetInt("general.alignment"));
    if (alignment < 8 || alignment > kMaxAlignment || (alignment & (alignment - 1)) != 0) {
      return absl::InvalidArgumentError(absl::StrCat("general.alignment is ", alignment,
                                                     ", must be a power of two from 8 to ", kMaxAlignment));
    }
  }

  PHX_RETURN_IF_ERROR(CheckCount(in, num_tensors, "tensors", kMinTensorInfoBytes));
  PHX_RETURN_IF_ERROR(in.TakeMemory(num_tensors * kTensorMemory));
  std::vector<TensorInfo> infos;
  infos.reserve(num_tensors);
  for (uint64_t i = 0; i < num_tensors; ++i) {
    absl::StatusOr<TensorInfo> info = ReadTensorInfo(in, types == TensorTypes::kAny);
    if (!info.ok()) return Annotate(info.status(), absl::StrCat("description of tensor ", i));
    if (!tensor_index_.emplace(info->tensor.name, i).second) {
      return absl::InvalidArgumentError(absl::StrCat("tensor ", Quote(info->tensor.name), " appears twice"));
    }
    infos.push_back(*std::move(info));
  }
  header_bytes_ = static_cast<int64_t>(in.offset());
  const auto align = static_cast<uint64_t>(alignment);
  PHX_RETURN_IF_ERROR(
      PlaceTensors(infos, map_->data(), size, (in.offset() + align - 1) / align * align, align));
  tensors_.reserve(infos.size());
  for (TensorInfo& info : infos) tensors_.push_back(std::move(info.tensor));
  num_own_tensors_ = tensors_.size();
  return absl::OkStatus();
}

uint64_t GgufFile::ContentHash() const {
  uint64_t hash = Fnv1a(kFnvOffset, map_->data(), header_bytes_);
  const int64_t file_bytes = map_->bytes();
  hash = Fnv1a(hash, &file_bytes, sizeof(file_bytes));
  for (size_t i = 0; i < num_own_tensors_; ++i) {
    hash = HashSamples(hash, tensors_[i].data, tensors_[i].bytes);
  }
  for (const auto& part : parts_) {
    const uint64_t part_hash = part->ContentHash();
    hash = Fnv1a(hash, &part_hash, sizeof(part_hash));
  }
  return hash;
}

std::string GgufFile::identity() const {
  std::string identity = map_->identity();
  for (const auto& part : parts_) absl::StrAppend(&identity, " ", part->identity());
  return identity;
}

std::vector<std::string> GgufFile::files() const {
  std::vector<std::string> paths = {path()};
  for (const auto& part : parts_) paths.push_back(part->path());
  return paths;
}

}  // namespace phalanx
