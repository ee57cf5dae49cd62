// What a leader takes from coordinators (Submit) and what its followers take from it (StepPlan). The first
// byte chooses. Requests run on a small scheduler, in any order with what else happens to them; a rank's
// block tables follow.
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <deque>
#include <memory>

#include "tests/fuzz/inputs.h"
#include "tests/fuzz/messages.h"
#include "worker/plan_codec.h"
#include "worker/scheduler.h"

namespace {

using namespace phalanx;

constexpr int64_t kBlocks = 32;
constexpr int32_t kVocab = 264;
constexpr int kMaxEvents = 128;
constexpr int kMaxSteps = 20000;

void Must(const absl::Status& status) {
  if (status.ok()) return;
  std::fprintf(stderr, "ERROR: %s\n", status.ToString().c_str());
  std::abort();
}

StepPlan OverTheWire(const StepPlan& plan) {
  internal::v1::StepPlan message, received;
  ToProto(plan, &message);
  if (!received.ParseFromString(message.SerializeAsString())) std::abort();
  StepPlan again = FromProto(received);
  if (again != plan) std::abort();
  return again;
}

void Plans(Input* input) {
  BlockTables tables(kBlocks);
  while (!input->empty()) {
    const bool right = input->Byte() % 8 != 0;
    StepPlan plan;
    if (!With<internal::v1::StepPlan>(input->Piece(),
                                      [&](const auto& m) { plan = OverTheWire(FromProto(m)); })) {
      return;
    }
    if (right) {  // no input would guess a checksum
      BlockTables copy = tables;
      (void)copy.Apply(plan);
      plan.checksum = copy.Checksum();
    }
    if (!tables.Apply(plan).ok()) return;
    for (const PlanRow& row : plan.rows) {
      for (const int32_t block : *tables.Find(row.sequence)) {
        if (tables.holders(block) < 1) std::abort();
      }
    }
  }
}

std::shared_ptr<const TokenBytes> Tokens() {
  auto tokens = std::make_shared<TokenBytes>();
  for (int i = 0; i < 256; ++i) tokens->bytes.push_back(std::string(1, static_cast<char>(i)));
  for (const char* text : {"<think>", "</think>", "</thi", "nk>", "a</think>", "<|begin_of_thought|>",
                           "<|end_of_thought|>", "<end>"}) {
    tokens->bytes.push_back(text);
  }
  tokens->is_control.assign(kVocab, false);
  tokens->is_control.back() = true;
  return tokens;
}

struct Leader {
  explicit Leader(uint8_t choice) : scheduler(Options(choice)) {}

  static SchedulerOptions Options(uint8_t choice) {
    static const auto tokens = Tokens();
    SchedulerOptions o;
    o.num_blocks = kBlocks;
    o.context_length = 96;
    o.vocab_size = kVocab;
    o.num_rope_modes = 2;
    o.block_size = 4;
    o.max_tokens_per_step = choice & 1 ? 16 : 5;
    o.max_sequences = choice & 2 ? 5 : 2;
    o.max_logits_per_step = 6;
    o.max_queued = 4;
    o.max_guesses = choice & 4 ? 3 : 0;
    o.token_bytes = tokens;
    return o;
  }

  void Plan() {
    if (steps.size() > 1) return;
    auto step = scheduler.Plan();
    if (!step.has_value()) return;
    Must(tables.Apply(OverTheWire(step->plan)));
    steps.push_back(*std::move(step));
  }
  void Commit(uint8_t first) {
    if (steps.empty()) return;
    StepResult result;
    uint32_t id = first;
    for (const SampleRow& sample : steps.front().samples) {
      id = id * 7 + 11;
      result.ids.push_back(first == 255         ? -1
                           : sample.target >= 0 ? sample.target
                                                : static_cast<int32_t>(id % kVocab));
      TokenLogprobs logprobs;
      logprobs.id = result.ids.back();
      for (int i = 0; i < sample.num_top; ++i) logprobs.top.push_back({i, -1.0f});
      result.logprobs.push_back(std::move(logprobs));
    }
    Must(CheckResult(steps.front().samples, kVocab, result));
    for (const SequenceOutput& output : scheduler.Commit(result)) {
      internal::v1::SequenceOutput message;
      ToProto(output, &message);
      if (message.request() != output.request) std::abort();
    }
    steps.pop_front();
  }

  Scheduler scheduler;
  BlockTables tables{kBlocks};
  std::deque<PlannedStep> steps;
};

void Requests(Input* input) {
  Leader leader(input->Byte());
  for (int n = 0; n < kMaxEvents && !input->empty(); ++n) {
    const uint8_t kind = input->Byte();
    const uint8_t source = kind >> 4 & 3;
    switch (kind % 8) {
      case 0:
      case 1:
        With<internal::v1::Submit>(input->Piece(), [&](const auto& m) {
          auto request = FromProto(m, source);
          if (request.ok()) (void)leader.scheduler.Submit(*std::move(request));
        });
        break;
      case 2:
        leader.scheduler.Abort(source, input->Byte());
        break;
      case 3:
        leader.scheduler.AbortSource(source);
        break;
      case 4:
      case 5:
        leader.Plan();
        break;
      default:
        leader.Commit(input->Byte());
    }
    Must(leader.scheduler.CheckInvariants());
    (void)leader.scheduler.TakeAdmitted();
  }
  // Every request ends.
  for (int step = 0; !leader.scheduler.idle(); ++step) {
    if (step == kMaxSteps) std::abort();
    leader.Plan();
    leader.Commit(static_cast<uint8_t>(step % 255));
  }
  Must(leader.scheduler.CheckInvariants());
  if (leader.scheduler.load().blocks_used != 0) std::abort();
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  Input input(data, size);
  if (input.Byte() % 2 == 0) {
    Plans(&input);
  } else {
    Requests(&input);
  }
  return 0;
}
