// Which algorithm was fastest for a product on a device, kept in a text file: a line an entry,
//   1 CHECKSUM DEVICE LIBRARY KERNELS N K BUCKET INPUT OUTPUT KIND WORKSPACE ALGORITHM
// with the library's and our kernels' version, KIND `cublaslt`, `own` or `cublaslt-fast-sums`, and the
// algorithm as 8 words in hexadecimal. Several processes may use one file: each save takes over what others
// have saved.
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <string_view>

#include "absl/status/status.h"
#include "kernels/cuda/cublaslt_api.h"

namespace phalanx::cuda {

// Rows of x for which one algorithm is searched: the power of two that is not below, 32 to 16384.
inline constexpr int64_t kMinBucket = 32, kMaxBucket = 16384;
int64_t BucketOf(int64_t rows);

struct ProductKey {
  std::string device;  // without spaces
  uint64_t library = 0;
  int kernels = 0;
  int64_t n = 0, k = 0, bucket = 0;
  int input = 0, output = 0;  // types, as lt::kBF16; of e4m3 also 256 times how the weight is scaled

  auto operator<=>(const ProductKey&) const = default;
};

struct ProductChoice {
  bool own = false;        // our own kernel; the rest says nothing
  bool fast_sums = false;  // with kDescFastAccumulation
  uint64_t workspace = 0;
  lt::Algorithm algorithm;
};

// A device's name as a word of an entry.
std::string DeviceWord(std::string_view name);
std::string FormatEntry(const ProductKey& key, const ProductChoice& choice);
// Null for a line that is no entry: another version's, cut short, altered.
std::optional<std::pair<ProductKey, ProductChoice>> ParseEntry(std::string_view line);

class ProductCache {
 public:
  // `file`: empty for none. What cannot be read is logged and ignored.
  explicit ProductCache(std::string file);
  const ProductChoice* Find(const ProductKey& key) const;
  // Also in the file, which is replaced whole, or, where that fails, left as it was (an error).
  absl::Status Insert(const ProductKey& key, const ProductChoice& choice);
  const std::string& file() const { return file_; }

 private:
  using Entries = std::map<ProductKey, ProductChoice>;
  static Entries Read(const std::string& file);
  std::string file_;
  Entries entries_;
};

// products.txt in `folder`; where that is empty, in phalanx in $XDG_CACHE_HOME or in ~/.cache; empty where
// there is neither.
std::string ProductCacheFile(const std::string& folder);

}  // namespace phalanx::cuda
