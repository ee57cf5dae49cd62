// Conformance of sampling: the same ids on every rung, bit for bit.
#include "tests/kernels/ops_fixture.h"

#include <functional>
#include <memory>
#include <set>

#include "kernels/numeric.h"

namespace phalanx {
namespace {

struct Sampled {
  std::vector<int32_t> ids, top_ids;
  std::vector<float> logprobs, top_logprobs;
};

Sampled RunSample(Ops& ops, const std::vector<float>& logits, int64_t vocab,
                  const std::vector<SampleRow>& rows, int num_shares) {
  const auto num = static_cast<int64_t>(rows.size());
  SampleParams p;
  p.num_rows = num;
  p.vocab_size = vocab;
  p.num_shares = num_shares;
  for (int s = 0; s <= num_shares; ++s) p.share_begin.push_back(vocab * s / num_shares);
  p.share_cols = (vocab + num_shares - 1) / num_shares + 2;
  std::vector<float> gathered(static_cast<size_t>(num_shares * num * p.share_cols), kNan);
  for (int s = 0; s < num_shares; ++s) {
    for (int64_t r = 0; r < num; ++r) {
      for (int64_t c = p.share_begin[s]; c < p.share_begin[s + 1]; ++c) {
        gathered[(s * num + r) * p.share_cols + c - p.share_begin[s]] = logits[r * vocab + c];
      }
    }
  }
  DeviceArray<float> logits_a(ops, gathered);
  DeviceArray<int32_t> ids(ops, std::vector<int32_t>(num, -9)),
      top_ids(ops, std::vector<int32_t>(num * 20, -9));
  DeviceArray<float> logprobs(ops, std::vector<float>(num, -9)), top(ops, std::vector<float>(num * 20, -9));
  p.logits = logits_a.data();
  p.rows = rows;
  p.ids = ids.data();
  p.logprobs = logprobs.data();
  p.top_ids = top_ids.data();
  p.top_logprobs = top.data();
  const absl::Status status = ops.Sample(p);
  EXPECT_TRUE(status.ok()) << status.ToString();
  return {ids.Get(), top_ids.Get(), logprobs.Get(), top.Get()};
}

TEST_P(OpsTest, SampleAgreesWithTheReferenceExactly) {
  Random random(13);
  for (const int64_t vocab : {1, 3, 100, 1031, 5000}) {
    std::vector<SampleRow> rows;
    for (const float temperature : {0.0f, 0.3f, 1.0f, 5.0f, 1e-6f}) {
      for (const int32_t top_k : {0, 1, 5, 700}) {
        for (const float top_p : {1.0f, 0.9f, 0.3f, 0.0f}) {
          SampleRow row;
          row.temperature = temperature;
          row.top_k = top_k;
          row.top_p = top_p;
          row.seed = 0x123456789abcdefull + rows.size();
          row.position = rows.size() * 7;
          row.choice = static_cast<uint32_t>(rows.size() % 3);
          row.num_top = static_cast<int32_t>(rows.size() % 4 == 0 ? -1 : rows.size() % 21);
          if (rows.size() % 10 == 9) row.target = static_cast<int32_t>(random.Below(vocab));
          rows.push_back(row);
        }
      }
    }
    const auto num = static_cast<int64_t>(rows.size());
    std::vector<float> logits = random.Normal(num * vocab, 3);
    for (int64_t i = 0; i < num * vocab; i += 5) logits[i] = std::round(logits[i]);  // ties
    const Sampled want = RunSample(*reference_, logits, vocab, rows, 1);
    for (const int shares : {1, 3}) {
      const Sampled got = RunSample(*ops_, logits, vocab, rows, shares);
      EXPECT_EQ(got.ids, want.ids) << "vocabulary " << vocab;
      EXPECT_EQ(got.top_ids, want.top_ids);
      EXPECT_EQ(got.logprobs, want.logprobs);
      EXPECT_EQ(got.top_logprobs, want.top_logprobs);
    }
    for (size_t r = 0; r < rows.size(); ++r) {
      if (rows[r].target >= 0) {
        EXPECT_EQ(want.ids[r], rows[r].target);
      }
      EXPECT_GE(want.ids[r], 0);
      EXPECT_LT(want.ids[r], vocab);
      for (int j = std::max(0, rows[r].num_top); j < 20; ++j) EXPECT_EQ(want.top_ids[r * 20 + j], -9);
      if (rows[r].num_top < 0) {
        EXPECT_EQ(want.logprobs[r], -9);
      }
    }
  }
}

TEST_P(OpsTest, SampleEdges) {
  const float inf = std::numeric_limits<float>::infinity();
  const int64_t vocab = 40;
  std::vector<float> logits(7 * vocab, 0.5f);
  logits[0 * vocab + 33] = kNan;
  logits[1 * vocab + 2] = inf;
  for (int64_t i = 0; i < vocab; ++i) logits[2 * vocab + i] = -inf;
  for (int64_t i = 0; i < vocab; ++i) logits[3 * vocab + i] = i == 39 ? -1000.0f : -inf;
  logits[4 * vocab + 17] = 0.5001f;
  std::vector<SampleRow> rows(7);
  for (SampleRow& row : rows) row.num_top = 2;
  rows[3].temperature = 1;  // one possible token
  rows[5].temperature = 1;  // all equal
  rows[5].top_k = 1;
  rows[6].temperature = 0;
  const Sampled got = RunSample(*ops_, logits, vocab, rows, 1);
  EXPECT_THAT(got.ids, testing::ElementsAre(-1, -1, -1, 39, 17, 0, 0)) << "ties go to the lowest id";
  EXPECT_TRUE(std::isnan(got.logprobs[0]));
  EXPECT_FLOAT_EQ(got.logprobs[3], 0.0f);
  EXPECT_NEAR(got.logprobs[6], -std::log(40.0), 1e-5);
  EXPECT_EQ(got.top_ids[6 * 20], 0);
  EXPECT_EQ(got.top_ids[6 * 20 + 1], 1);
}

// Five of forty equal tokens are kept, whichever way they are chosen: those of the lowest ids.
TEST_P(OpsTest, SampleKeepsTheLowestIdsOfEqualTokens) {
  const int64_t vocab = 40;
  std::vector<SampleRow> rows(150);
  for (size_t i = 0; i < rows.size(); ++i) {
    rows[i].temperature = 1;
    rows[i].seed = i;
    if (i % 3 == 0) rows[i].top_k = 5;
    if (i % 3 == 1) rows[i].top_p = 0.125f;
    if (i % 3 == 2) rows[i].top_k = 20, rows[i].top_p = 0.25f;
  }
  const std::vector<float> logits(rows.size() * static_cast<size_t>(vocab), 0.5f);
  const Sampled got = RunSample(*ops_, logits, vocab, rows, 1);
  for (size_t way = 0; way < 3; ++way) {
    std::set<int32_t> seen;
    for (size_t i = way; i < rows.size(); i += 3) seen.insert(got.ids[i]);
    EXPECT_THAT(seen, testing::ElementsAre(0, 1, 2, 3, 4)) << "way " << way;
  }
}

std::shared_ptr<const std::vector<int32_t>> Ids(std::vector<int32_t> ids) {
  return std::make_shared<const std::vector<int32_t>>(std::move(ids));
}

// tests/golden/sampling_test.cc has the ids themselves.
TEST_P(OpsTest, SampleWithControlsAgreesWithTheReferenceExactly) {
  Random random(17);
  for (const int64_t vocab : {1, 7, 100, 1031, 5000}) {
    std::vector<SampleRow> rows;
    for (int i = 0; i < 300; ++i) {
      SampleRow row;
      row.temperature = i % 5 == 0 ? 0 : 0.25f * static_cast<float>(i % 7 + 1);
      if (i % 3 == 0) row.top_k = static_cast<int32_t>(1 + random.Below(60));
      if (i % 4 == 0) row.top_p = 0.8f;
      if (i % 2 == 0) row.min_p = 0.01f * static_cast<float>(random.Below(30));
      row.seed = static_cast<uint64_t>(i);
      row.position = random.Below(1000);
      row.num_top = i % 3 - 1;
      if (i % 6 != 0) {
        auto counts = std::make_shared<TokenCounts>(vocab);
        for (int j = 0; j < i % 50; ++j) counts->AddPrompt(static_cast<int32_t>(random.Below(vocab)));
        for (int j = 0; j < i; ++j) counts->AddOutput(static_cast<int32_t>(random.Below(vocab)));
        row.counts = counts;
        row.repetition_penalty = 0.5f + 0.125f * static_cast<float>(random.Below(16));
        row.frequency_penalty = -2 + 0.125f * static_cast<float>(random.Below(32));
        row.presence_penalty = -2 + 0.125f * static_cast<float>(random.Below(32));
      }
      if (i % 7 == 0) {
        auto bias = std::make_shared<std::vector<TokenBias>>();
        for (int64_t id = 0; id < vocab; id += 1 + static_cast<int64_t>(random.Below(30))) {
          bias->push_back({static_cast<int32_t>(id), static_cast<float>(random.Below(200)) - 100});
        }
        row.bias = bias;
      }
      if (i % 8 == 0) row.banned[i / 8 % 2] = Ids({static_cast<int32_t>(random.Below(vocab))});
      rows.push_back(row);
    }
    std::vector<float> logits = random.Normal(static_cast<int64_t>(rows.size()) * vocab, 3);
    const Sampled want = RunSample(*reference_, logits, vocab, rows, 1);
    for (const int shares : {1, 3}) {
      const Sampled got = RunSample(*ops_, logits, vocab, rows, shares);
      EXPECT_EQ(got.ids, want.ids) << "vocabulary " << vocab;
      EXPECT_EQ(got.top_ids, want.top_ids);
      if (vocab > 1) {
        EXPECT_EQ(got.logprobs, want.logprobs);
      }
    }
    // Log-probabilities are of the raw logits.
    std::vector<SampleRow> plain(rows.size());
    for (size_t r = 0; r < rows.size(); ++r) {
      plain[r].num_top = 20;
      plain[r].target = std::max(want.ids[r], 0);
    }
    const Sampled raw = RunSample(*ops_, logits, vocab, plain, 1);
    for (size_t r = 0; r < rows.size(); ++r) {
      if (rows[r].num_top < 0 || want.ids[r] < 0) continue;
      EXPECT_EQ(want.logprobs[r], raw.logprobs[r]);
      for (int j = 0; j < rows[r].num_top; ++j) EXPECT_EQ(want.top_ids[r * 20 + j], raw.top_ids[r * 20 + j]);
    }
  }
}

// A ban is seen by whoever looks for the best: on a device that is another thread.
TEST_P(OpsTest, SampleNeverTakesWhatIsBanned) {
  const int64_t vocab = 700;
  std::vector<SampleRow> rows(12);
  std::vector<float> logits(rows.size() * vocab, 0.0f);
  for (size_t r = 0; r < rows.size(); ++r) {
    rows[r].temperature = 0;
    rows[r].banned[0] = Ids({300});
    logits[r * vocab + 300] = 2;
    logits[r * vocab + 5] = 1;
  }
  EXPECT_THAT(RunSample(*ops_, logits, vocab, rows, 1).ids, testing::Each(5));
}

TEST_P(OpsTest, SampleControlsAtTheirEdges) {
  const float inf = std::numeric_limits<float>::infinity();
  const float largest = std::numeric_limits<float>::max();
  const int64_t vocab = 4;
  const auto bias = [](std::vector<TokenBias> b) {
    return std::make_shared<const std::vector<TokenBias>>(std::move(b));
  };
  auto counts = std::make_shared<TokenCounts>(vocab);
  counts->AddPrompt(0);
  for (int32_t id : {1, 1, 2}) counts->AddOutput(id);
  std::vector<float> logits;
  std::vector<SampleRow> rows;
  std::vector<int32_t> want;
  const auto add = [&](std::vector<float> l, int32_t id, const std::function<void(SampleRow*)>& set) {
    logits.insert(logits.end(), l.begin(), l.end());
    rows.emplace_back();
    rows.back().num_top = 0;
    set(&rows.back());
    want.push_back(id);
  };
  // Everything is banned; all but one is.
  add({1, 2, 3, 4}, -1, [](SampleRow* r) { r->banned = {Ids({0, 1}), Ids({2, 3})}; });
  add({1, 2, 3, 4}, 1, [](SampleRow* r) { r->banned = {Ids({0, 3}), Ids({2, 3})}, r->temperature = 1; });
  // A bias does not make the impossible possible; a forced token is not adjusted.
  add({1, -inf, 0, 0}, 0, [&](SampleRow* r) { r->bias = bias({{1, 100}}); });
  add({1, 2, 3, 4}, 3, [](SampleRow* r) { r->banned[0] = Ids({3}), r->target = 3; });
  // What overflows is the largest float: equal ones go to the lowest id.
  add({1, 0.5f, 0.25f, 9}, 0, [&](SampleRow* r) { r->counts = counts, r->repetition_penalty = 1e-39f; });
  add({-1e30f, -2e30f, -3e30f, -inf}, 0, [&](SampleRow* r) {
    r->counts = counts, r->repetition_penalty = largest, r->temperature = 1, r->top_k = 1;
  });
  // Divided where positive, multiplied where not.
  add({3, 1, 1, 2}, 3, [&](SampleRow* r) { r->counts = counts, r->repetition_penalty = 2; });
  add({-1, -9, -9, -1.5f}, 3, [&](SampleRow* r) { r->counts = counts, r->repetition_penalty = 2; });
  // The prompt's token 0 is not of the output; token 1 is there twice, token 2 once.
  add({0, 1.5f, 1.25f, -1}, 2, [&](SampleRow* r) { r->counts = counts, r->frequency_penalty = 1; });
  add({0, 2.5f, 1.5f, -1}, 1, [&](SampleRow* r) { r->counts = counts, r->presence_penalty = 2; });
  add({0.25f, 2, 1.9f, -1}, 0, [&](SampleRow* r) { r->counts = counts, r->presence_penalty = 2; });
  // min_p 1 leaves the best alone.
  add({1, 2, 3, 3.01f}, 3, [](SampleRow* r) { r->min_p = 1, r->temperature = 2; });
  // NaN, whatever is asked for.
  add({1, kNan, 0, 0}, -1, [](SampleRow* r) { r->banned[0] = Ids({1}); });
  add({1, kNan, 0, 0}, -1, [](SampleRow* r) { r->target = 2; });
  const Sampled got = RunSample(*ops_, logits, vocab, rows, 1);
  EXPECT_EQ(got.ids, want);
  EXPECT_TRUE(std::isnan(got.logprobs[0]));
  EXPECT_NEAR(got.logprobs[3], -std::log(1 + std::exp(-1.0) + std::exp(-2.0) + std::exp(-3.0)), 1e-5);
}

TEST_P(OpsTest, SampleRefusesControlsThatCannotBe) {
  const std::vector<float> logits(10, 0.0f);
  int32_t id = 0;
  const auto message = [&](const std::function<void(SampleRow*)>& set) {
    SampleParams p;
    p.logits = logits.data();
    p.num_rows = 1;
    p.vocab_size = p.share_cols = 10;
    p.share_begin = {0, 10};
    p.rows.resize(1);
    p.ids = &id;
    set(p.rows.data());
    const absl::Status status = ops_->Sample(p);
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
    return std::string(status.message());
  };
  using testing::HasSubstr;
  EXPECT_THAT(message([](SampleRow* r) { r->min_p = 1.5f; }), HasSubstr("rows[0].min_p is 1.5"));
  EXPECT_THAT(message([](SampleRow* r) { r->repetition_penalty = 0; }), HasSubstr("repetition_penalty is 0"));
  EXPECT_THAT(message([](SampleRow* r) { r->frequency_penalty = kNan; }),
              HasSubstr("frequency_penalty is nan"));
  EXPECT_THAT(message([](SampleRow* r) { r->presence_penalty = 1; }), HasSubstr("counts is null"));
  EXPECT_THAT(message([](SampleRow* r) { r->counts = std::make_shared<TokenCounts>(11); }),
              HasSubstr("counts is of a vocabulary of 11, must be of 10"));
  EXPECT_THAT(message([](SampleRow* r) {
                r->bias = std::make_shared<std::vector<TokenBias>>(std::vector<TokenBias>{{10, 1}});
              }),
              HasSubstr("bias of token 10"));
  EXPECT_THAT(message([](SampleRow* r) { r->banned[1] = Ids({3, -1}); }), HasSubstr("banned holds -1"));
}

// 100000 draws a configuration; chi-square of the counts against probabilities in fp64. The bound is the 1 -
// 1e-6 quantile for 9 degrees of freedom or fewer; seeds are fixed, so it does not fail by chance.
TEST_P(OpsTest, DrawsWithControlsFollowTheDistribution) {
  const std::vector<float> one = {1.0f, 0.0f, -1.0f, 2.0f, 0.5f, -0.25f, 1.5f, 0.75f, -3.0f, 1.25f};
  const auto vocab = static_cast<int64_t>(one.size());
  const int draws = kTestsDevice ? 4000 : 100000, chunk = kTestsDevice ? 2000 : 10000;
  auto counts = std::make_shared<TokenCounts>(vocab);
  for (int32_t id : {0, 2, 3}) counts->AddPrompt(id);
  for (int32_t id : {3, 3, 6, 7, 7, 7}) counts->AddOutput(id);
  struct Config {
    float temperature, top_p, min_p, repetition, frequency, presence;
    int32_t top_k;
    bool bias, banned;
  };
  const Config configs[] = {
      {0.8f, 1, 0, 1, 0, 0, 0, false, false},    {0.8f, 0.8f, 0, 1, 0, 0, 0, false, false},
      {1.0f, 1, 0.2f, 1, 0, 0, 0, false, false}, {1.0f, 1, 0, 1.3f, 0.5f, 0.25f, 0, false, false},
      {2.0f, 1, 0, 1, 0, 0, 0, true, true},      {1.3f, 0.9f, 0.05f, 1.2f, -0.5f, 0.4f, 7, true, true},
  };
  uint64_t seed = 1000;
  for (const Config& c : configs) {
    ++seed;
    SampleRow row;
    row.temperature = c.temperature;
    row.top_p = c.top_p;
    row.top_k = c.top_k;
    row.min_p = c.min_p;
    row.repetition_penalty = c.repetition;
    row.frequency_penalty = c.frequency;
    row.presence_penalty = c.presence;
    row.counts = counts;
    row.seed = seed;
    if (c.bias)
      row.bias = std::make_shared<std::vector<TokenBias>>(std::vector<TokenBias>{{1, 1.5f}, {8, 4}});
    if (c.banned) row.banned[0] = Ids({9});
    std::vector<double> logit(one.begin(), one.end()), probability(one.size(), 0.0);
    if (c.bias) logit[1] += 1.5, logit[8] += 4;
    for (const TokenCounts::Entry& e : counts->entries()) {
      double& x = logit[e.id];
      x = x > 0 ? x / c.repetition : x * c.repetition;
      x -= c.frequency * e.num_output + (e.num_output > 0 ? c.presence : 0);
    }
    std::vector<int> order;
    for (int id = 0; id < vocab; ++id) {
      if (!c.banned || id != 9) order.push_back(id);
    }
    std::sort(order.begin(), order.end(), [&](int a, int b) { return logit[a] > logit[b]; });
    if (c.top_k > 0) order.resize(std::min<size_t>(order.size(), c.top_k));
    double total = 0, kept = 0, sum = 0;
    const auto weight = [&](int id) { return std::exp((logit[id] - logit[order[0]]) / c.temperature); };
    for (int id : order) total += weight(id);
    for (int id : order) {
      if (kept >= c.top_p * total) break;
      kept += weight(id);
      if (weight(id) < c.min_p) continue;
      probability[id] = weight(id);
      sum += weight(id);
    }
    std::vector<int64_t> count(one.size(), 0);
    std::vector<float> logits;
    for (int i = 0; i < chunk; ++i) logits.insert(logits.end(), one.begin(), one.end());
    for (int done = 0; done < draws; done += chunk) {
      std::vector<SampleRow> rows(chunk, row);
      for (int i = 0; i < chunk; ++i) rows[i].position = static_cast<uint64_t>(done + i);
      for (const int32_t id : RunSample(*ops_, logits, vocab, rows, 1).ids) ++count[static_cast<size_t>(id)];
    }
    double chi = 0;
    for (int id = 0; id < vocab; ++id) {
      const double expected = draws * probability[id] / sum;
      if (probability[id] == 0) {
        EXPECT_EQ(count[id], 0) << id;
      } else {
        chi += (count[id] - expected) * (count[id] - expected) / expected;
      }
    }
    EXPECT_LT(chi, 44.8) << "configuration with seed " << seed;
  }
}

// Draws follow the distribution: counts of 20000 draws within five standard deviations.
TEST_P(OpsTest, DrawsFollowTheDistribution) {
  const std::vector<float> one = {1.0f, 0.0f, -1.0f, 2.0f, 0.5f};
  const int draws = kTestsDevice ? 2000 : 20000;
  std::vector<SampleRow> rows(draws);
  std::vector<float> logits;
  for (int i = 0; i < draws; ++i) {
    rows[i].temperature = 0.8f;
    rows[i].seed = 42;
    rows[i].position = static_cast<uint64_t>(i);
    logits.insert(logits.end(), one.begin(), one.end());
  }
  const Sampled got = RunSample(*ops_, logits, 5, rows, 1);
  double total = 0;
  for (const float l : one) total += std::exp(l / 0.8);
  for (int id = 0; id < 5; ++id) {
    const double probability = std::exp(one[id] / 0.8) / total;
    const auto count = std::count(got.ids.begin(), got.ids.end(), id);
    EXPECT_NEAR(static_cast<double>(count), draws * probability,
                5 * std::sqrt(draws * probability * (1 - probability)));
  }
}

}  // namespace
}  // namespace phalanx
