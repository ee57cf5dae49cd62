// One copy of a rank's packed weights for all workers of a host that hold the same slice of the same model:
// a file, as a rule in /dev/shm, that the first of them fills and the others map.
//
// Locks (flock) on the file tell who is there: exclusive while it is being filled, shared while it is used;
// they go with their process, however it ends. Only a header that is written last makes a file complete. Who
// leaves last removes it; what killed workers left is taken over by workers of the same weights and removed
// by others.
#pragma once

#include <chrono>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "kernels/weight_memory.h"

namespace phalanx {

struct SharedWeightsOptions {
  std::string folder;
  // Everything that the bytes depend on, in two parts: what the ranks of a group have in common, and the
  // rest.
  std::string model_key;
  std::string slice_key;
  int64_t expected_bytes = 0;         // about; a folder with less room is not begun with
  std::chrono::milliseconds wait{0};  // for another worker to fill the file
  std::function<bool()> cancelled;    // ends the wait; may be null
};

// Thread safety: one thread at a time.
class SharedWeights : public WeightMemory {
 public:
  // Waits where another worker is filling the file. Errors say why the weights cannot be shared, as the end
  // of a sentence: no room, a file of another user, a wait too long.
  static absl::StatusOr<std::unique_ptr<SharedWeights>> Open(const SharedWeightsOptions& options);
  // Unmaps, and removes the file where nobody else uses it.
  ~SharedWeights() override;
  SharedWeights(const SharedWeights&) = delete;
  SharedWeights& operator=(const SharedWeights&) = delete;

  // Without room any more, and where the file's pieces prove to be others than those asked for, a warning is
  // logged once and all further pieces are none.
  Piece Take(int64_t bytes) override;
  // All pieces have been taken and filled: others may use them, nobody may write them any more.
  void Finish();

  // Whether another worker filled the file.
  bool was_packed() const { return was_packed_; }
  // Some pieces were none, or the file is not there for others.
  bool given_up() const { return given_up_; }
  // Of the pieces taken.
  int64_t bytes() const { return taken_bytes_; }
  const std::string& path() const { return path_; }

  // Removes files of this user in `folder` that nobody uses, but for those of `model_key` (empty: those too).
  static void RemoveUnused(const std::string& folder, const std::string& model_key);

 private:
  struct Header;
  struct PieceEntry {
    int64_t offset = 0;
    int64_t bytes = 0;
  };
  enum class Found { kReady, kToPack, kRetry };

  SharedWeights() = default;
  absl::StatusOr<Found> TryLock(uint64_t key, std::string* packer);
  bool ReadPieces(uint64_t key);
  absl::Status MapToPack(const SharedWeightsOptions& options, uint64_t key);
  absl::Status MapPacked();
  // At an address of huge pages; null: errno says why.
  char* Map(int64_t bytes, int protection);
  bool Grow(int64_t end);
  void GiveUp(const std::string& why);
  void Close();

  std::string path_;
  int fd_ = -1;
  uint64_t key_ = 0;
  char* map_ = nullptr;
  int64_t map_bytes_ = 0;
  int64_t file_bytes_ = 0;  // that are reserved
  int64_t end_ = 0;         // of the pieces
  std::vector<PieceEntry> pieces_;
  size_t next_ = 0;
  int64_t taken_bytes_ = 0;
  bool was_packed_ = false;
  bool given_up_ = false;
  bool finished_ = false;
};

}  // namespace phalanx
