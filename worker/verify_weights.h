// Compares the files of a model with their checksums before they are used (--verify-weights). Checksums are
// those of the note that `phalanx pull` leaves in a directory (base/pull_manifest.h), or of a file SHA256SUMS
// beside the weights, as sha256sum writes it.
#pragma once

#include <functional>
#include <string>
#include <vector>

#include "absl/status/status.h"

namespace phalanx {

// Reads every one of `files` whole. DataLoss naming a file whose content is another than its checksum says,
// with both; FailedPrecondition naming a file that has none; Cancelled when `cancelled` says so (asked
// every few MiB). `flip_first`: as if a bit of the first file's first byte were another.
absl::Status VerifyWeights(const std::vector<std::string>& files, const std::function<bool()>& cancelled,
                           bool flip_first);

}  // namespace phalanx
