// Which token a row gives, against a restatement in Python (make_sampling_reference.py), on every rung.
#include <gtest/gtest.h>

#include <fstream>
#include <limits>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "kernels/ops.h"
#include "nlohmann/json.hpp"

namespace phalanx {
namespace {

uint64_t Hash(uint64_t seed, uint64_t i) {
  uint64_t x = seed * 0x9e3779b97f4a7c15u + i + 0x9e3779b97f4a7c15u;
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;
  x = (x ^ (x >> 27)) * 0x94d049bb133111ebu;
  return x ^ (x >> 31);
}

std::vector<int32_t> IdsOf(const nlohmann::json& spec) {
  std::vector<int32_t> ids;
  for (uint64_t i = 0; i < spec[1].get<uint64_t>(); ++i) {
    ids.push_back(static_cast<int32_t>(Hash(spec[0].get<uint64_t>(), i) % spec[2].get<uint64_t>()));
  }
  return ids;
}

std::vector<float> LogitsOf(const std::string& kind, uint64_t seed, int64_t vocab) {
  std::vector<float> logits(static_cast<size_t>(vocab), 0.0f);
  for (int64_t i = 0; i < vocab; ++i) {
    const auto h = static_cast<int32_t>(Hash(seed, static_cast<uint64_t>(i)) >> 48);
    if (kind == "fine" || kind == "gaps") logits[i] = static_cast<float>(h - 32768) / 4096;
    if (kind == "ties") logits[i] = static_cast<float>(h / 4096 - 8) / 2;
    if (kind == "gaps" && h % 4 == 0) logits[i] = -std::numeric_limits<float>::infinity();
  }
  return logits;
}

SampleRow RowOf(const nlohmann::json& c) {
  SampleRow row;
  row.temperature = c.value("temperature", 0.0f);
  row.top_k = c.value("top_k", 0);
  row.top_p = c.value("top_p", 1.0f);
  row.min_p = c.value("min_p", 0.0f);
  row.repetition_penalty = c.value("repetition", 1.0f);
  row.frequency_penalty = c.value("frequency", 0.0f);
  row.presence_penalty = c.value("presence", 0.0f);
  row.seed = c["seed"].get<uint64_t>();
  row.choice = c["choice"].get<uint32_t>();
  row.position = c["position"].get<uint64_t>();
  if (c.contains("prompt") || c.contains("output")) {
    auto counts = std::make_shared<TokenCounts>(c["vocab"].get<int64_t>());
    if (c.contains("prompt")) {
      for (int32_t id : IdsOf(c["prompt"])) counts->AddPrompt(id);
    }
    if (c.contains("output")) {
      for (int32_t id : IdsOf(c["output"])) counts->AddOutput(id);
    }
    row.counts = counts;
  }
  if (c.contains("bias")) {
    const size_t num_values = c["bias"].size() - 3;
    std::map<int32_t, float> by_id;
    for (int32_t id : IdsOf(c["bias"])) by_id[id] = c["bias"][3 + id % num_values].get<float>();
    auto bias = std::make_shared<std::vector<TokenBias>>();
    for (const auto& [id, value] : by_id) bias->push_back({id, value});
    row.bias = bias;
  }
  if (c.contains("banned")) {
    // In two parts, as min_tokens and the thinking budget ban.
    std::vector<int32_t> ids = IdsOf(c["banned"]);
    const auto half = ids.begin() + static_cast<int64_t>(ids.size() / 2);
    row.banned[0] = std::make_shared<const std::vector<int32_t>>(ids.begin(), half);
    row.banned[1] = std::make_shared<const std::vector<int32_t>>(half, ids.end());
  }
  return row;
}

class SamplingGolden : public testing::TestWithParam<std::string> {};

TEST_P(SamplingGolden, GivesTheIdsOfTheRestatement) {
  const nlohmann::json cases =
      nlohmann::json::parse(std::ifstream(PHALANX_SOURCE_DIR "/tests/golden/sampling_reference.json"));
  OpsOptions options;
  options.rung = GetParam();
  auto ops = CreateOps(options);
  ASSERT_TRUE(ops.ok()) << ops.status();
  int wrong = 0, none = 0;
  for (const nlohmann::json& c : cases) {
    const auto vocab = c["vocab"].get<int64_t>();
    const std::vector<float> logits =
        LogitsOf(c["kind"].get<std::string>(), c["logits"].get<uint64_t>(), vocab);
    int32_t id = -7;
    SampleParams p;
    p.logits = logits.data();
    p.num_rows = 1;
    p.vocab_size = vocab;
    p.share_cols = vocab;
    p.share_begin = {0, vocab};
    p.rows = {RowOf(c)};
    p.ids = &id;
    const absl::Status status = (*ops)->Sample(p);
    ASSERT_TRUE(status.ok()) << status << " " << c.dump();
    EXPECT_EQ(id, c["id"].get<int32_t>()) << c.dump();
    wrong += id != c["id"].get<int32_t>();
    none += id == -1;
    ASSERT_LT(wrong, 10);
  }
  EXPECT_GT(cases.size(), 1000u);
  EXPECT_GT(none, 0);
}

INSTANTIATE_TEST_SUITE_P(Rungs, SamplingGolden, testing::ValuesIn(AvailableRungs()),
                         [](const auto& info) { return info.param; });

}  // namespace
}  // namespace phalanx
