// Conformance of Route, GroupedMatmul and HeadMatmul.
#include <numeric>

#include "tests/kernels/ops_fixture.h"

namespace phalanx {
namespace {

struct RouteCase {
  int experts, groups, top_groups, top_k;
  bool sigmoid, bias, normalize;
  float scale;
};

struct Routed {
  std::vector<int32_t> ids;
  std::vector<float> weights;
};

Routed RunRoute(Ops& ops, const RouteCase& c, const std::vector<float>& scores,
                const std::vector<float>& bias) {
  const auto tokens = static_cast<int64_t>(scores.size()) / c.experts;
  DeviceArray<float> scores_a(ops, scores), bias_a(ops, bias);
  DeviceArray<int32_t> ids(ops, std::vector<int32_t>(tokens * c.top_k, -1));
  DeviceArray<float> weights(ops, std::vector<float>(tokens * c.top_k, kNan));
  RouteParams p;
  p.scores = scores_a.data();
  p.num_tokens = tokens;
  p.num_experts = c.experts;
  p.bias = c.bias ? bias_a.data() : nullptr;
  p.sigmoid = c.sigmoid;
  p.num_groups = c.groups;
  p.top_groups = c.top_groups;
  p.top_k = c.top_k;
  p.normalize = c.normalize;
  p.scale = c.scale;
  p.ids = ids.data();
  p.weights = weights.data();
  const absl::Status status = ops.Route(p);
  EXPECT_TRUE(status.ok()) << status.ToString();
  return {ids.Get(), weights.Get()};
}

TEST_P(OpsTest, Route) {
  Random random(11);
  for (const RouteCase& c :
       {RouteCase{8, 1, 1, 2, false, false, true, 1.0f}, RouteCase{64, 8, 3, 6, true, true, true, 2.5f},
        RouteCase{16, 4, 2, 4, true, true, false, 1.0f}, RouteCase{4, 4, 4, 4, false, false, false, 1.0f},
        RouteCase{256, 8, 4, 8, true, true, true, 2.5f}, RouteCase{6, 1, 1, 6, true, true, true, 1.0f},
        RouteCase{1, 1, 1, 1, true, false, true, 3.0f}}) {
    const int64_t tokens = 20;
    std::vector<float> scores = random.Normal(tokens * c.experts), bias = random.Normal(c.experts);
    for (int e = 0; e < c.experts; ++e) scores[e] = 0;  // ties
    ExpectAgree({1e-6, 1e-5, 1e-9}, "experts " + std::to_string(c.experts), [&](Ops& ops) {
      const Routed got = RunRoute(ops, c, scores, bias);
      std::vector<float> both = got.weights;
      for (int64_t t = 0; t < tokens; ++t) {
        float sum = 0;
        for (int j = 0; j < c.top_k; ++j) {
          const int64_t i = t * c.top_k + j;
          if (j > 0) {
            EXPECT_LT(got.ids[i - 1], got.ids[i]) << "ids rise";
          }
          both.push_back(static_cast<float>(got.ids[i]));
          sum += got.weights[i];
        }
        if (c.normalize) {
          EXPECT_NEAR(sum, c.scale, 1e-4);
        }
      }
      return both;
    });
  }
}

// By hand: which experts are taken, by groups and with a bias that their weights do not show.
TEST_P(OpsTest, RouteKeepsGroupsByTheirTwoBest) {
  const float one = std::log(3.0f);  // sigmoid 0.75; of 0 it is 0.5
  // Groups {0, 1, 2}, {3, 4, 5}: sums of two 0.75 + 0.1 and 0.5 + 0.5.
  const std::vector<float> scores = {one, -20, -20, 0, 0, -20};
  const std::vector<float> bias = {0, 0.1f, 0, 0, 0, 0};
  RouteCase c{6, 2, 1, 2, true, true, true, 1.0f};
  Routed got = RunRoute(*ops_, c, scores, bias);
  EXPECT_THAT(got.ids, testing::ElementsAre(3, 4));
  EXPECT_THAT(got.weights,
              testing::ElementsAre(testing::FloatNear(0.5f, 1e-6f), testing::FloatNear(0.5f, 1e-6f)));
  c.top_groups = 2;
  got = RunRoute(*ops_, c, scores, bias);
  EXPECT_THAT(got.ids, testing::ElementsAre(0, 3)) << "of equal ones the lower id";
  EXPECT_THAT(got.weights,
              testing::ElementsAre(testing::FloatNear(0.6f, 1e-6f), testing::FloatNear(0.4f, 1e-6f)));
}

// A kept group's experts come before those of a group left out, however bad they are; weights stay numbers
// where all scores vanish; a row of NaN gets legal ids and spoils nobody else.
TEST_P(OpsTest, RouteOfHostileScores) {
  const float inf = std::numeric_limits<float>::infinity();
  const RouteCase c{8, 2, 1, 3, true, true, true, 2.0f};
  std::vector<float> scores(5 * 8, 0.0f);
  const std::vector<float> bias = {0, 0, -5, -5, 0, -1, 0, -1};  // group 0 wins by a tie
  std::fill_n(scores.begin() + 8, 8, -200.0f);                   // sigmoids of 0
  std::fill_n(scores.begin() + 16, 8, kNan);
  std::fill_n(scores.begin() + 24, 8, -inf);
  std::fill_n(scores.begin() + 32, 8, inf);
  const Routed got = RunRoute(*ops_, c, scores, bias);
  for (int t = 0; t < 5; ++t) {
    const std::vector<int32_t> ids(got.ids.begin() + t * 3, got.ids.begin() + t * 3 + 3);
    EXPECT_THAT(ids, testing::ElementsAre(0, 1, 2)) << "token " << t;
    for (int j = 0; j < 3; ++j) EXPECT_EQ(std::isnan(got.weights[t * 3 + j]), t == 2) << "token " << t;
  }
  for (int i = 9; i < 12; ++i) EXPECT_LT(got.weights[i], 1e-6f);
}

// ---- Grouped products -----------------------------------------------------------------------------

struct Experts {
  int64_t n, k;
  std::vector<std::vector<float>> w;
};

Experts RandomExperts(Random& random, int count, int64_t n, int64_t k) {
  Experts experts{n, k, {}};
  for (int e = 0; e < count; ++e) experts.w.push_back(random.Normal(n * k));
  return experts;
}

// Of each token top_k different experts of [0, count), rising.
std::vector<int32_t> RandomIds(Random& random, int64_t tokens, int count, int top_k) {
  std::vector<int32_t> ids, all(count);
  std::iota(all.begin(), all.end(), 0);
  for (int64_t t = 0; t < tokens; ++t) {
    std::shuffle(all.begin(), all.end(), random.generator());
    std::sort(all.begin(), all.begin() + top_k);
    ids.insert(ids.end(), all.begin(), all.begin() + top_k);
  }
  return ids;
}

struct Grouping {
  int top_k = 1;
  bool per_choice = false;
  std::vector<int64_t> cuts = {};  // empty: no combine
  int first_shard = 0;
  std::vector<int> absent = {};
  int64_t gap = 0;  // elements between the sums of subtrees
};

std::vector<float> RunGrouped(Ops& ops, const Experts& experts, const Grouping& g,
                              const std::vector<int32_t>& ids, const std::vector<float>& weights,
                              const std::vector<float>& x) {
  const auto choices = static_cast<int64_t>(ids.size()), tokens = choices / g.top_k;
  std::vector<std::unique_ptr<PackedWeight>> packed;
  std::vector<const PackedWeight*> views;
  for (int e = 0; e < static_cast<int>(experts.w.size()); ++e) {
    PackWeightParams pack;
    pack.pieces = {{{experts.w[e].data(), DType::kF32, experts.n, experts.k}, {0, experts.n}}};
    pack.cols = {0, experts.k};
    packed.push_back(OrDie(ops.PackWeight(pack)));
    const bool absent = std::find(g.absent.begin(), g.absent.end(), e) != g.absent.end() ||
                        (!g.cuts.empty() && (e < g.cuts.front() || e >= g.cuts.back()));
    views.push_back(absent ? nullptr : packed.back().get());
  }
  const int64_t x_rows = g.per_choice ? choices : tokens;
  DeviceMatrix x_m(ops, x_rows, experts.k, Rows(x, experts.k, 0, x_rows), 3);
  DeviceArray<int32_t> ids_a(ops, ids);
  DeviceArray<float> weights_a(ops, weights);
  GroupedMatmulParams p;
  p.x = x_m.view();
  p.x_per_choice = g.per_choice;
  p.experts = views;
  p.ids = ids_a.data();
  p.top_k = g.top_k;
  p.num_tokens = tokens;
  if (g.cuts.empty()) {
    DeviceMatrix y(ops, choices, experts.n, 2);
    p.y = y.view();
    const absl::Status status = ops.GroupedMatmul(p);
    EXPECT_TRUE(status.ok()) << status.ToString();
    return y.Get();
  }
  const size_t trees = SubtreesOf(g.first_shard, g.first_shard + static_cast<int>(g.cuts.size()) - 1).size();
  const int64_t stride = tokens * experts.n + g.gap;
  DeviceArray<float> sums(ops, std::vector<float>(trees * static_cast<size_t>(stride), kNan));
  p.weights = weights_a.data();
  p.y = {sums.data(), tokens, experts.n, experts.n};
  p.expert_cuts = g.cuts;
  p.first_shard = g.first_shard;
  p.tree_stride = g.gap == 0 ? 0 : stride;
  const absl::Status status = ops.GroupedMatmul(p);
  EXPECT_TRUE(status.ok()) << status.ToString();
  std::vector<float> got = sums.Get(), out;
  for (size_t i = 0; i < trees; ++i) {
    const auto at = got.begin() + static_cast<int64_t>(i) * stride;
    out.insert(out.end(), at, at + tokens * experts.n);
    for (int64_t j = 0; j < g.gap; ++j) EXPECT_TRUE(std::isnan(at[tokens * experts.n + j])) << "the gap";
  }
  return out;
}

// Products of 2^24, 1 and -2^24: in any other order the one is not lost.
TEST_P(OpsTest, ChoicesOfATokenAreAddedInTheirOrder) {
  const int64_t n = 5, k = 8;
  Experts experts{n, k, {}};
  for (const float sum : {0x1p24f, 1.0f, -0x1p24f}) {
    experts.w.push_back(std::vector<float>(n * k, sum / (64 * k)));
  }
  const Grouping grouping{.top_k = 3, .cuts = {0, 3}};
  const std::vector<float> x(2 * k, 64.0f);
  EXPECT_THAT(RunGrouped(*ops_, experts, grouping, {0, 1, 2, 0, 1, 2}, std::vector<float>(6, 1.0f), x),
              testing::Each(0.0f));
}

TEST_P(OpsTest, GroupedMatmul) {
  Random random(12);
  const int count = 7;
  const Experts experts = RandomExperts(random, count, 40, 70);
  const std::vector<Grouping> groupings = {
      {.top_k = 2},
      {.top_k = 2, .per_choice = true, .absent = {2}},
      {.top_k = 3, .absent = {0, 1, 2, 3, 4, 5, 6}},
      {.top_k = 7, .per_choice = true, .cuts = {0, 7}},
      {.top_k = 3, .cuts = {0, 0, 2, 2, 3, 5, 5, 6, 7}, .gap = 9},  // shards without experts
      {.top_k = 2, .per_choice = true, .cuts = {2, 3, 3, 6}, .first_shard = 3, .gap = 1},
      {.top_k = 2, .cuts = {4, 4, 4}, .first_shard = 6},  // none at all
      {.top_k = 1, .cuts = {1, 3, 4, 6}, .first_shard = 1, .absent = {2}},
  };
  for (const Grouping& g : groupings) {
    for (const int64_t tokens : {0, 1, 13, 90}) {
      const std::vector<int32_t> ids = RandomIds(random, tokens, count, g.top_k);
      const std::vector<float> weights = random.Normal(tokens * g.top_k);
      const std::vector<float> x = random.Normal(tokens * g.top_k * experts.k);
      ExpectAgree(ProductTolerance(4 * experts.k), "top_k " + std::to_string(g.top_k),
                  [&](Ops& ops) { return RunGrouped(ops, experts, g, ids, weights, x); });
    }
  }
}

// All tokens at one expert; the others, chosen by nobody, do not matter.
TEST_P(OpsTest, GroupedMatmulOfOneExpert) {
  Random random(13);
  Experts experts = RandomExperts(random, 4, 33, 20);
  const std::vector<int32_t> ids(50, 2);
  const std::vector<float> weights = random.Normal(50), x = random.Normal(50 * 20);
  const Grouping g = {.top_k = 1, .cuts = {0, 2, 4}};
  const std::vector<float> all = RunGrouped(*ops_, experts, g, ids, weights, x);
  for (const int e : {0, 1, 3}) std::fill(experts.w[e].begin(), experts.w[e].end(), kNan);
  EXPECT_TRUE(SameBits(all, RunGrouped(*ops_, experts, g, ids, weights, x)));
}

// A token's result has the same bits whatever its neighbours choose and whatever ranks hold the shards.
TEST_P(OpsTest, GroupedMatmulOfAToken) {
  Random random(14);
  const int count = 6, top_k = 3;
  const int64_t tokens = 40;
  const Experts experts = RandomExperts(random, count, 24, 50);
  const std::vector<int32_t> ids = RandomIds(random, tokens, count, top_k);
  const std::vector<float> weights = random.Normal(tokens * top_k), x = random.Normal(tokens * 50);
  const std::vector<int64_t> cuts = {0, 1, 1, 4, 6};
  const std::vector<float> all = RunGrouped(*ops_, experts, {.top_k = top_k, .cuts = cuts}, ids, weights, x);
  for (const int64_t t : {int64_t{0}, int64_t{7}, tokens - 1}) {
    const std::vector<int32_t> own(ids.begin() + t * top_k, ids.begin() + (t + 1) * top_k);
    EXPECT_TRUE(
        SameBits(Rows(all, 24, t, t + 1), RunGrouped(*ops_, experts, {.top_k = top_k, .cuts = cuts}, own,
                                                     Rows(weights, top_k, t, t + 1), Rows(x, 50, t, t + 1))))
        << "token " << t;
  }
  // Two ranks of two shards, added up as the tree does.
  const std::vector<float> left =
      RunGrouped(*ops_, experts, {.top_k = top_k, .cuts = {0, 1, 1}}, ids, weights, x);
  std::vector<float> sum =
      RunGrouped(*ops_, experts, {.top_k = top_k, .cuts = {1, 4, 6}, .first_shard = 2}, ids, weights, x);
  for (size_t i = 0; i < sum.size(); ++i) sum[i] = left[i] + sum[i];
  EXPECT_TRUE(SameBits(all, sum));
}

TEST_P(OpsTest, GroupedMatmulErrors) {
  Random random(15);
  const Experts experts = RandomExperts(random, 3, 4, 5);
  std::vector<std::unique_ptr<PackedWeight>> packed;
  std::vector<const PackedWeight*> views;
  for (const auto& w : experts.w) {
    PackWeightParams pack;
    pack.pieces = {{{w.data(), DType::kF32, 4, 5}, {0, 4}}};
    pack.cols = {0, 5};
    packed.push_back(OrDie(ops_->PackWeight(pack)));
    views.push_back(packed.back().get());
  }
  DeviceMatrix x(*ops_, 2, 5, random.Normal(10)), y(*ops_, 2, 4);
  DeviceArray<float> weights(*ops_, random.Normal(4));
  GroupedMatmulParams p;
  p.x = x.view();
  p.experts = views;
  p.top_k = 2;
  p.num_tokens = 2;
  p.weights = weights.data();
  p.y = y.view();
  const auto expect = [&](const std::vector<int32_t>& ids, const std::vector<int64_t>& cuts,
                          const std::string& error) {
    DeviceArray<int32_t> ids_a(*ops_, ids);
    p.ids = ids_a.data();
    p.expert_cuts = cuts;
    EXPECT_THAT(std::string(ops_->GroupedMatmul(p).message()), HasSubstr(error));
  };
  expect({0, 1, 1, 2}, {}, "expert_cuts has 0 entries");
  expect({0, 1, 1, 2}, {0, 2}, "experts[2] is given, must be null outside expert_cuts' [0, 2)");
  expect({0, 1, 1, 2}, {0, 2, 1}, "expert_cuts[2] is 1, must be in [2, 4)");
  if (device()) return;  // what lies on a device is not read to be checked
  expect({0, 1, 1, 1}, {0, 3}, "ids[3] is 1, must be in [2, 3)");
  expect({0, 1, 1, 3}, {0, 3}, "ids[3] is 3, must be in [2, 3)");
}

// ---- Products of heads ------------------------------------------------------------------------------

TEST_P(OpsTest, HeadMatmul) {
  Random random(16);
  struct Case {
    int heads;
    int64_t n, k, rest;
  };
  for (const Case& c : {Case{3, 32, 12, 8}, Case{1, 5, 7, 0}, Case{4, 16, 33, 1}, Case{2, 128, 512, 0},
                        Case{2, 512, 128, 64}, Case{0, 8, 8, 8}}) {
    std::vector<std::vector<float>> w;
    for (int h = 0; h < c.heads; ++h) w.push_back(random.Normal(c.n * c.k));
    for (const int64_t rows : {0, 1, 6, 37}) {
      const std::vector<float> x = random.Normal(rows * c.heads * (c.k + c.rest));
      const auto run = [&](Ops& ops) {
        std::vector<std::unique_ptr<PackedWeight>> packed;
        std::vector<const PackedWeight*> views;
        for (const auto& values : w) {
          PackWeightParams pack;
          pack.pieces = {{{values.data(), DType::kF32, c.n, c.k}, {0, c.n}}};
          pack.cols = {0, c.k};
          packed.push_back(OrDie(ops.PackWeight(pack)));
          views.push_back(packed.back().get());
        }
        DeviceMatrix x_m(ops, rows, c.heads * (c.k + c.rest), x, 5);
        DeviceMatrix y_m(ops, rows, c.heads * (c.n + c.rest), 2);
        const absl::Status status = ops.HeadMatmul({.x = x_m.view(), .weights = views, .y = y_m.view()});
        EXPECT_TRUE(status.ok()) << status.ToString();
        return y_m.Get();
      };
      ExpectAgree(ProductTolerance(c.k), "heads " + std::to_string(c.heads), run);
      const std::vector<float> got = run(*ops_);
      for (int64_t r = 0; r < rows; ++r) {
        for (int h = 0; h < c.heads; ++h) {
          for (int64_t i = 0; i < c.rest; ++i) {
            EXPECT_EQ(got[(r * c.heads + h) * (c.n + c.rest) + c.n + i],
                      Rounded(x[(r * c.heads + h) * (c.k + c.rest) + c.k + i]));
          }
        }
      }
    }
  }
}

TEST_P(OpsTest, HeadMatmulErrors) {
  Random random(17);
  const std::vector<float> w = random.Normal(6 * 4);
  PackWeightParams pack;
  pack.pieces = {{{w.data(), DType::kF32, 6, 4}, {0, 6}}};
  pack.cols = {0, 4};
  auto weight = OrDie(ops_->PackWeight(pack));
  pack.cols = {0, 3};
  auto narrower = OrDie(ops_->PackWeight(pack));
  DeviceMatrix x(*ops_, 2, 9, random.Normal(18)), y(*ops_, 2, 12), even(*ops_, 2, 8, random.Normal(16));
  const auto error = [&](const Matrix& input, const std::vector<const PackedWeight*>& weights) {
    return std::string(ops_->HeadMatmul({.x = input, .weights = weights, .y = y.view()}).message());
  };
  EXPECT_THAT(error(x.view(), {weight.get(), weight.get()}), HasSubstr("x.cols is 9"));
  EXPECT_THAT(error(x.view(), {weight.get(), nullptr}), HasSubstr("weights[1] is null"));
  EXPECT_THAT(error(x.view(), {weight.get(), narrower.get()}), HasSubstr("weights[1] has K = 3"));
  EXPECT_THAT(error(x.view(), {weight.get()}), HasSubstr("y.cols is 12, must be"));
  EXPECT_THAT(error(x.view(), {}), HasSubstr("x.cols is 9"));
  EXPECT_TRUE(ops_->HeadMatmul({.x = even.view(),
                                .weights = std::vector<const PackedWeight*>{weight.get(), weight.get()},
                                .y = y.view()})
                  .ok());
}

}  // namespace
}  // namespace phalanx
