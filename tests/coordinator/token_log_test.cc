#include "coordinator/token_log.h"

#include <gtest/gtest.h>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "tests/coordinator/transcript.h"

namespace phalanx::coordinator {
namespace {

// Commands: begin FINGERPRINT; append attempt= offset= ids=1,2; truncate SIZE; show.
class TokenLogDriver {
 public:
  std::string Execute(const Command& c) {
    const std::string& verb = c.words.at(0);
    if (verb == "begin") return absl::StrCat("attempt ", log_.BeginAttempt(c.words.at(1)), "\n");
    if (verb == "append") {
      const auto known = log_.Append(static_cast<uint32_t>(c.Number("attempt", 1)),
                                     static_cast<int32_t>(c.Number("offset")), ParseIds(c.Arg("ids")));
      return known.ok() ? absl::StrCat("known ", *known, "\n") : known.status().ToString() + "\n";
    }
    if (verb == "truncate") {
      log_.Truncate(std::stoul(c.words.at(1)));
      return "";
    }
    if (verb == "show") {
      return absl::StrCat("attempt ", log_.attempt(), " on ", log_.fingerprint(), ": ",
                          absl::StrJoin(log_.ids(), " "), "\n");
    }
    ADD_FAILURE() << "unknown command " << verb;
    return "";
  }

 private:
  TokenLog log_{Sampling(), 0};
};

TEST(TokenLog, Transcripts) { RunTranscripts<TokenLogDriver>("token_log"); }

}  // namespace
}  // namespace phalanx::coordinator
