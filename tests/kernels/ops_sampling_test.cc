// Conformance of sampling: the same ids on every rung, bit for bit.
#include "tests/kernels/ops_fixture.h"

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

// Draws follow the distribution: counts of 20000 draws within five standard deviations.
TEST_P(OpsTest, DrawsFollowTheDistribution) {
  const std::vector<float> one = {1.0f, 0.0f, -1.0f, 2.0f, 0.5f};
  const int draws = 20000;
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
