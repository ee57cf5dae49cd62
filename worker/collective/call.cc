#include "worker/collective/call.h"

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"

namespace phalanx {
namespace {

absl::Status CheckBytes(const char* call, const CollectiveOptions& options, int64_t bytes) {
  if (bytes >= 0 && bytes <= options.max_gather_bytes) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat(
      call, " of ", bytes, " bytes; it must be 0 to max_gather_bytes ", options.max_gather_bytes));
}

}  // namespace

CollectiveCall CollectiveCall::Unpack(uint64_t packed) {
  return {static_cast<Kind>(packed >> 56), static_cast<uint8_t>(packed >> 48),
          static_cast<int64_t>(packed & ((uint64_t{1} << 48) - 1))};
}

std::string CollectiveCall::ToString() const {
  switch (kind) {
    case kConnect:
      return "the group";
    case kBarrier:
      return "Barrier";
    case kTreeAllReduce:
    case kTreeAllReduceGather:
      return absl::StrCat("TreeAllReduce of ", count, " elements");
    case kAllGather:
      return absl::StrCat("AllGather of ", count, " bytes");
    case kBroadcast:
      return absl::StrCat("Broadcast of ", count, " bytes from rank ", static_cast<int>(root));
  }
  return absl::StrCat("call ", static_cast<int>(kind));
}

absl::Status CheckSumsBuffer(const CollectiveOptions& options, int64_t count) {
  if (count >= 0 && count <= options.max_elements) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat(
      "SumsBuffer of ", count, " elements; it must be 0 to max_elements ", options.max_elements));
}

absl::Status CheckTreeAllReduce(int64_t count, int64_t sums_count) {
  if (count >= 0 && count == sums_count) return absl::OkStatus();
  return absl::FailedPreconditionError(
      absl::StrCat("TreeAllReduce of ", count, " elements without a SumsBuffer of ", count, " before it",
                   sums_count < 0 ? "" : absl::StrCat(" (it was of ", sums_count, ")")));
}

absl::Status CheckAllGather(const CollectiveOptions& options, int64_t bytes) {
  return CheckBytes("AllGather", options, bytes);
}

absl::Status CheckBroadcast(const CollectiveOptions& options, int64_t bytes, int root) {
  if (absl::Status wrong = CheckBytes("Broadcast", options, bytes); !wrong.ok()) return wrong;
  if (root >= 0 && root < options.size) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat("Broadcast from rank ", root, "; it must be 0 to ", options.size - 1));
}

absl::Status CallsDiffer(int peer, const CollectiveCall& peers, int rank, const CollectiveCall& own) {
  return absl::FailedPreconditionError(absl::StrCat("rank ", peer, " came to ", peers.ToString(),
                                                    " where rank ", rank, " came to ", own.ToString(),
                                                    "; all must make the same calls"));
}

absl::Status DidNotCome(const std::vector<int>& missing, int size, const CollectiveCall& call,
                        int64_t timeout_ms) {
  return absl::DeadlineExceededError(
      absl::StrCat(missing.size() == 1 ? "rank " : "ranks ", absl::StrJoin(missing, ", "), " of ", size,
                   " did not come to ", call.ToString(), " within ", timeout_ms, " ms",
                   call.kind == CollectiveCall::kConnect ? ""
                   : missing.size() == 1                 ? ", though it lives: it is stuck"
                                                         : ", though they live: they are stuck"));
}

}  // namespace phalanx
