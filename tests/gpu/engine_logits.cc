// engine_logits --model DIR --tokens FILE --out FILE [--rung NAME] [--cuda-mode invariant|fast] [--chunk N]
// [--decode N] [--greedy N]: what the engine says, for a comparison with another implementation.
//
// Each line of --tokens is a prompt, ids with spaces between. Its last --decode tokens (4) are run one by
// one, those before them in steps of --chunk (512). --out gets the logits of every position of every prompt,
// fp32, [positions, vocabulary]. Then --greedy tokens (8), each the most likely, continue the prompt; stdout
// says them as JSON.
#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <numeric>
#include <sstream>
#include <string>
#include <vector>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "nlohmann/json.hpp"
#include "tests/worker/test_group.h"

namespace phalanx {
namespace {

constexpr int kBlockSize = 32;

[[noreturn]] void Fail(const std::string& message) {
  std::fprintf(stderr, "engine_logits: %s\n", message.c_str());
  std::exit(1);
}

struct Flags {
  std::string model, tokens, out, rung = "cuda";
  DeviceMode mode = DeviceMode::kInvariant;
  int chunk = 512, decode = 4, greedy = 8;
};

Flags ParseFlags(int argc, char** argv) {
  Flags flags;
  for (int i = 1; i + 1 < argc; i += 2) {
    const std::string name = argv[i], value = argv[i + 1];
    int number = 0;
    const bool is_number = absl::SimpleAtoi(value, &number) && number > 0;
    if (name == "--model") {
      flags.model = value;
    } else if (name == "--tokens") {
      flags.tokens = value;
    } else if (name == "--out") {
      flags.out = value;
    } else if (name == "--rung") {
      flags.rung = value;
    } else if (name == "--cuda-mode" && (value == "invariant" || value == "fast")) {
      flags.mode = value == "fast" ? DeviceMode::kFast : DeviceMode::kInvariant;
    } else if (name == "--chunk" && is_number) {
      flags.chunk = number;
    } else if (name == "--decode" && is_number) {
      flags.decode = number;
    } else if (name == "--greedy" && is_number) {
      flags.greedy = number;
    } else {
      Fail(absl::StrCat(name, " ", value, ": unknown option or value"));
    }
  }
  if (argc % 2 == 0) Fail(absl::StrCat(argv[argc - 1], " lacks its value"));
  if (flags.model.empty() || flags.tokens.empty() || flags.out.empty())
    Fail("--model, --tokens and --out are needed");
  return flags;
}

std::vector<std::vector<int32_t>> ReadPrompts(const std::string& path, int64_t vocab) {
  std::ifstream in(path);
  if (!in) Fail(absl::StrCat("cannot read ", path));
  std::vector<std::vector<int32_t>> prompts;
  for (std::string line; std::getline(in, line);) {
    std::istringstream words(line);
    std::vector<int32_t> prompt;
    for (int32_t id = 0; words >> id;) {
      if (id < 0 || id >= vocab) Fail(absl::StrCat(path, ": token ", id, ", must be in [0, ", vocab, ")"));
      prompt.push_back(id);
    }
    if (!words.eof()) Fail(absl::StrCat(path, ": no number in the line ", line));
    if (!prompt.empty()) prompts.push_back(std::move(prompt));
  }
  return prompts;
}

// Runs `tokens`, writes their logits, and returns what is most likely after them.
class Sequence {
 public:
  Sequence(TestGroup* group, int64_t num_blocks) : group_(group) {
    std::vector<int32_t> order(static_cast<size_t>(num_blocks));
    std::iota(order.rbegin(), order.rend(), 0);
    tables_ = std::make_unique<TestTables>(num_blocks, kBlockSize, order);
  }

  int32_t Run(const std::vector<int32_t>& tokens, std::FILE* out) {
    StepPlan plan;
    tables_->Grow(&plan, 0, position_ + static_cast<int64_t>(tokens.size()));
    PlanRow row;
    row.sequence = 0;
    row.first_position = static_cast<int32_t>(position_);
    row.tokens = tokens;
    row.logit_offsets.resize(tokens.size());
    std::iota(row.logit_offsets.begin(), row.logit_offsets.end(), 0);
    plan.rows.push_back(row);
    tables_->Finish(&plan);
    std::vector<float> logits;
    const auto result =
        group_->Step(plan, std::vector<SampleRow>(tokens.size()), out == nullptr ? nullptr : &logits);
    if (!result.ok()) Fail(result.status().ToString());
    position_ += static_cast<int64_t>(tokens.size());
    if (out != nullptr && std::fwrite(logits.data(), sizeof(float), logits.size(), out) != logits.size())
      Fail("cannot write --out");
    return result->ids.back();
  }
  void End() {
    StepPlan plan;
    tables_->Release(&plan, 0);
    tables_->Finish(&plan);
    const auto result = group_->Step(plan, {}, nullptr);
    if (!result.ok()) Fail(result.status().ToString());
    position_ = 0;
  }

 private:
  TestGroup* group_;
  std::unique_ptr<TestTables> tables_;
  int64_t position_ = 0;
};

int Main(int argc, char** argv) {
  const Flags flags = ParseFlags(argc, argv);
  const absl::StatusOr<std::unique_ptr<Checkpoint>> file = Checkpoint::Open(flags.model);
  if (!file.ok()) Fail(file.status().ToString());
  const auto prompts = ReadPrompts(flags.tokens, (*file)->config().vocab_size);
  size_t longest = 1;
  for (const auto& prompt : prompts) longest = std::max(longest, prompt.size());
  const int64_t context = static_cast<int64_t>(longest) + flags.greedy + 1;
  const int64_t num_blocks = context / kBlockSize + 1;
  TestGroupOptions options;
  options.ops = {.rung = flags.rung,
                 .compute = Compute::kFast,
                 .num_threads = 1,
                 .device_mode = flags.mode,
                 .graphs = DeviceGraphs::kAuto};
  options.runner = {.max_tokens_per_step = flags.chunk,
                    .max_logits_per_step = flags.chunk,
                    .context_length = static_cast<int>(context),
                    .block_size = kBlockSize,
                    .kv_bytes = int64_t{1} << 40,
                    .max_kv_blocks = num_blocks};
  const absl::StatusOr<std::unique_ptr<TestGroup>> group = TestGroup::Create(**file, options);
  if (!group.ok()) Fail(group.status().ToString());
  std::FILE* const out = std::fopen(flags.out.c_str(), "wb");
  if (out == nullptr) Fail(absl::StrCat("cannot write ", flags.out));
  const OpsInfo& info = (*group)->ops(0).info();
  nlohmann::json said = {{"backend", info.backend},
                         {"instruction_set", info.instruction_set},
                         {"device", info.device},
                         {"vocab", (*file)->config().vocab_size},
                         {"greedy", nlohmann::json::array()}};
  Sequence sequence(group->get(), num_blocks);
  for (const auto& prompt : prompts) {
    const size_t decoded = std::min(prompt.size() - 1, static_cast<size_t>(flags.decode));
    int32_t next = 0;
    for (size_t at = 0; at < prompt.size();) {
      const size_t chunked = prompt.size() - decoded;
      const size_t end = at < chunked ? std::min(chunked, at + static_cast<size_t>(flags.chunk)) : at + 1;
      next = sequence.Run(
          {prompt.begin() + static_cast<int64_t>(at), prompt.begin() + static_cast<int64_t>(end)}, out);
      at = end;
    }
    std::vector<int32_t> greedy = {next};
    while (static_cast<int>(greedy.size()) < flags.greedy)
      greedy.push_back(sequence.Run({greedy.back()}, nullptr));
    sequence.End();
    said["greedy"].push_back(greedy);
  }
  if (std::fclose(out) != 0) Fail(absl::StrCat("cannot write ", flags.out));
  std::printf("%s\n", said.dump().c_str());
  return 0;
}

}  // namespace
}  // namespace phalanx

int main(int argc, char** argv) { return phalanx::Main(argc, argv); }
