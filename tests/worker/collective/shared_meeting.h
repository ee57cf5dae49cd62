// The meeting of a tcp group for tests and benchmarks: ranks that are forked after it was made tell each
// other what they have to know in shared memory.
#pragma once

#include <sys/mman.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstring>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "worker/collective/collective.h"

namespace phalanx {

class SharedMeeting {
 public:
  SharedMeeting()
      : places_(static_cast<Place*>(
                    mmap(nullptr, kBytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0)),
                [](Place* p) { munmap(p, kBytes); }) {}

  // For rank options.rank of options.size; for one topic. Outlives this object.
  MeetFunction Of(const CollectiveOptions& options) const {
    return
        [places = places_, rank = options.rank, size = options.size, timeout_ms = options.connect_timeout_ms](
            const std::string&, const std::string& blob) -> absl::StatusOr<std::vector<std::string>> {
          Place& own = places.get()[rank];
          own.bytes = std::min(blob.size(), sizeof(own.blob));
          std::memcpy(own.blob, blob.data(), own.bytes);
          own.came.store(1, std::memory_order_release);
          const auto deadline = std::chrono::steady_clock::now() + std::chrono::milliseconds(timeout_ms);
          while (true) {
            std::vector<int> missing;
            std::vector<std::string> blobs;
            for (int r = 0; r < size; ++r) {
              const Place& place = places.get()[r];
              if (place.came.load(std::memory_order_acquire) == 0) {
                missing.push_back(r);
              } else {
                blobs.emplace_back(place.blob, place.bytes);
              }
            }
            if (missing.empty()) return blobs;
            if (std::chrono::steady_clock::now() >= deadline) {
              return absl::DeadlineExceededError(absl::StrCat(missing.size() == 1 ? "rank " : "ranks ",
                                                              absl::StrJoin(missing, ", "), " of ", size,
                                                              " did not come within ", timeout_ms, " ms"));
            }
            std::this_thread::sleep_for(std::chrono::milliseconds(2));
          }
        };
  }
  // What a rank that came brought; "" before.
  std::string blob(int rank) const {
    const Place& place = places_.get()[rank];
    return place.came.load(std::memory_order_acquire) == 0 ? "" : std::string(place.blob, place.bytes);
  }

 private:
  struct Place {
    std::atomic<uint32_t> came;
    size_t bytes;
    char blob[240];
  };
  static constexpr size_t kBytes = 64 * sizeof(Place);
  std::shared_ptr<Place> places_;
};

}  // namespace phalanx
