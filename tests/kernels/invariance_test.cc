// Invariant 3 of the design, bit for bit, on every rung of this host: a result does not depend on the rows
// beside it, on how rows are cut into calls, on block ids, or on the number of ranks. Each property is a
// function that is also run against planted faulty kernels, which it must catch.
#include <gtest/gtest.h>

#include <algorithm>
#include <functional>
#include <map>
#include <numeric>

#include "kernels/ops.h"
#include "kernels/reference/reference_ops.h"
#include "tests/kernels/ops_testing.h"

namespace phalanx {
namespace {

using testing::AssertionFailure;
using testing::AssertionResult;
using testing::AssertionSuccess;

// ---- The properties -----------------------------------------------------------------------------

// run(begin, end) computes rows [begin, end) of a fixed input in one call and returns their outputs, `cols`
// wide. Each row must have the same bits alone and in any batch at any place.
AssertionResult RowsAreInvariant(int64_t num_rows, int64_t cols,
                                 const std::function<std::vector<float>(int64_t, int64_t)>& run) {
  std::vector<float> alone;
  for (int64_t r = 0; r < num_rows; ++r) {
    const std::vector<float> row = run(r, r + 1);
    alone.insert(alone.end(), row.begin(), row.end());
  }
  for (int64_t size = 2; size <= num_rows; ++size) {
    // Every offset of small batches; ends and a middle of large ones.
    const int64_t last = num_rows - size;
    for (int64_t begin = 0; begin <= last; begin += size <= 8 ? 1 : std::max<int64_t>(1, (last + 1) / 2)) {
      const std::vector<float> batch = run(begin, begin + size);
      for (int64_t r = 0; r < size; ++r) {
        if (!SameBits(Rows(batch, cols, r, r + 1), Rows(alone, cols, begin + r, begin + r + 1))) {
          return AssertionFailure() << "row " << begin + r
                                    << " differs between a call of one row and a call of " << size
                                    << " rows from " << begin;
        }
      }
    }
  }
  return AssertionSuccess();
}

AssertionResult MatmulRowsAreInvariant(Ops& ops, int64_t n, int64_t k, int64_t num_rows) {
  Random random(static_cast<uint32_t>(n * 1000 + k));
  const std::vector<float> w = random.Normal(n * k), x = random.Normal(num_rows * k);
  PackWeightParams pack;
  pack.pieces = {{{w.data(), DType::kF32, n, k}, {0, n}}};
  pack.cols = {0, k};
  auto weight = OrDie(ops.PackWeight(pack));
  return RowsAreInvariant(num_rows, n, [&](int64_t begin, int64_t end) {
    DeviceMatrix x_m(ops, end - begin, k, Rows(x, k, begin, end)), y(ops, end - begin, n);
    MatmulParams p;
    p.x = x_m.view();
    p.weight = weight.get();
    p.y = y.view();
    EXPECT_TRUE(ops.Matmul(p).ok());
    return y.Get();
  });
}

// The merged sums of a product over `cuts.size() - 1` shards, computed by `num_ranks` ranks one after the
// other.
std::vector<float> MergedSums(Ops& ops, const std::vector<float>& w, int64_t n, int64_t k,
                              const std::vector<int64_t>& cuts, int num_ranks, const std::vector<float>& x,
                              int64_t rows) {
  const int num_shards = static_cast<int>(cuts.size()) - 1;
  std::vector<Subtree> subtrees;
  std::vector<std::vector<float>> sums;
  for (int r = 0; r < num_ranks; ++r) {
    const int first = num_shards * r / num_ranks, last = num_shards * (r + 1) / num_ranks;
    PackWeightParams pack;
    pack.pieces = {{{w.data(), DType::kF32, n, k}, {0, n}}};
    pack.cols = {cuts[first], cuts[last]};
    pack.first_shard = first;
    pack.shard_cuts.assign(cuts.begin() + first, cuts.begin() + last + 1);
    auto weight = OrDie(ops.PackWeight(pack));
    std::vector<float> x_part;
    for (int64_t t = 0; t < rows; ++t) {
      x_part.insert(x_part.end(), x.begin() + t * k + pack.cols.begin, x.begin() + t * k + pack.cols.end);
    }
    DeviceMatrix x_m(ops, rows, pack.cols.size(), x_part);
    const size_t num = weight->subtrees().size();
    DeviceArray<float> out(ops, std::vector<float>(num * static_cast<size_t>(rows * n), kNan));
    EXPECT_TRUE(ops.ShardedMatmul({x_m.view(), weight.get(), out.data()}).ok());
    const std::vector<float> all = out.Get();
    for (size_t i = 0; i < num; ++i) {
      subtrees.push_back(weight->subtrees()[i]);
      sums.push_back(Rows(all, rows * n, static_cast<int64_t>(i), static_cast<int64_t>(i) + 1));
    }
  }
  for (const MergeStep& step : MergeOrder(subtrees)) {
    for (size_t i = 0; i < sums[step.left].size(); ++i) sums[step.left][i] += sums[step.right][i];
  }
  return sums[0];
}

AssertionResult SumsDoNotDependOnRanks(Ops& ops, int64_t n, const std::vector<int64_t>& cuts, int64_t rows) {
  const int64_t k = cuts.back();
  const int num_shards = static_cast<int>(cuts.size()) - 1;
  Random random(static_cast<uint32_t>(k));
  const std::vector<float> w = random.Normal(n * k), x = random.Normal(rows * k);
  const std::vector<float> one = MergedSums(ops, w, n, k, cuts, 1, x, rows);
  for (int d = 2; d <= num_shards; ++d) {
    if (!SameBits(one, MergedSums(ops, w, n, k, cuts, d, x, rows))) {
      return AssertionFailure() << num_shards << " shards on " << d
                                << " ranks give other bits than on one rank";
    }
  }
  // And each row alone.
  return RowsAreInvariant(std::min<int64_t>(rows, 9), n, [&](int64_t begin, int64_t end) {
    return MergedSums(ops, w, n, k, cuts, num_shards / 2 + 1, Rows(x, k, begin, end), end - begin);
  });
}

std::vector<int64_t> EvenCuts(int64_t k, int64_t unit, int num_shards) {
  std::vector<int64_t> cuts;
  for (int s = 0; s <= num_shards; ++s) cuts.push_back(k / unit * s / num_shards * unit);
  return cuts;
}

// A sequence's attention outputs, its rows cut into calls of the given sizes (the last repeats), block ids
// shuffled by `seed`.
std::vector<float> AttendInCalls(Ops& ops, int64_t length, const std::vector<int64_t>& sizes, uint32_t seed,
                                 int block_size) {
  const std::vector<int32_t> kv_head_of = {0, 0, 0, 1, 1};
  const KvCacheShape shape = {1, 2, 40, 48, block_size};
  Random data(3);
  const std::vector<float> q = data.Normal(length * 5 * 40), k = data.Normal(length * 2 * 40),
                           v = data.Normal(length * 2 * 48);
  const int64_t num_blocks = (length + block_size - 1) / block_size + 2;
  std::vector<int32_t> table(static_cast<size_t>(num_blocks));
  std::iota(table.begin(), table.end(), 0);
  Random order(seed);
  std::shuffle(table.begin(), table.end(), order.generator());
  PagedKv kv(ops, shape, num_blocks, {10000.0, 32, false, {}, 1.0f}, length);
  std::vector<float> result;
  size_t call = 0;
  for (int64_t begin = 0; begin < length; ++call) {
    const int64_t end = std::min(length, begin + sizes[std::min(call, sizes.size() - 1)]);
    const std::vector<float> rotated =
        kv.Store(0, 5, Rows(q, 5 * 40, begin, end), Rows(k, 80, begin, end), Rows(v, 96, begin, end),
                 Positions(begin, end), SlotsOf(table, block_size, begin, end));
    const std::vector<float> out = kv.Attend(0, kv_head_of, rotated, begin, end - begin, table);
    result.insert(result.end(), out.begin(), out.end());
    begin = end;
  }
  return result;
}

AssertionResult AttentionIsInvariant(Ops& ops) {
  const int64_t length = 530;  // beyond two chunks
  const std::vector<float> whole = AttendInCalls(ops, length, {length}, 1, 32);
  const std::vector<std::vector<int64_t>> cuts = {{1},  {256, 256, 18}, {255, 2, 100}, {7},
                                                  {64}, {500, 1},       {33, 1, 200}};
  for (const int block_size : {32, 1, 8, 16, 256}) {
    for (size_t i = 0; i < cuts.size(); ++i) {
      if (block_size != 32 && i % 3 != 1) continue;
      if (!SameBits(whole, AttendInCalls(ops, length, cuts[i], 2 + static_cast<uint32_t>(i), block_size))) {
        return AssertionFailure() << "attention differs when its rows come in calls of " << cuts[i][0]
                                  << ", ..., in blocks of " << block_size;
      }
    }
  }
  return AssertionSuccess();
}

// ---- Every rung keeps them ----------------------------------------------------------------------

class InvarianceTest : public testing::TestWithParam<RungCase> {
 protected:
  std::unique_ptr<Ops> Make(int num_threads = 2) {
    return OrDie(
        CreateOps({GetParam().rung, GetParam().compute, num_threads, GetParam().kv_type, GetParam().fp16}));
  }
};

TEST_P(InvarianceTest, Matmul) {
  auto ops = Make();
  EXPECT_TRUE(MatmulRowsAreInvariant(*ops, 37, 75, 64));
  EXPECT_TRUE(MatmulRowsAreInvariant(*ops, 144, 576, 40));
  EXPECT_TRUE(MatmulRowsAreInvariant(*ops, 16, 4500, 20));  // more than one block of K
}

TEST_P(InvarianceTest, MatmulOfManyRowsAgreesWithOne) {
  auto ops = Make();
  Random random(5);
  const int64_t n = 300, k = 1100, rows = 290;
  const std::vector<float> w = random.Normal(n * k), x = random.Normal(rows * k);
  PackWeightParams pack;
  pack.pieces = {{{w.data(), DType::kF32, n, k}, {0, n}}};
  pack.cols = {0, k};
  auto weight = OrDie(ops->PackWeight(pack));
  const auto run = [&](int64_t begin, int64_t end) {
    DeviceMatrix x_m(*ops, end - begin, k, Rows(x, k, begin, end)), y(*ops, end - begin, n);
    MatmulParams p;
    p.x = x_m.view();
    p.weight = weight.get();
    p.y = y.view();
    EXPECT_TRUE(ops->Matmul(p).ok());
    return y.Get();
  };
  const std::vector<float> all = run(0, rows);
  for (int64_t r = 0; r < rows; r += 13) EXPECT_TRUE(SameBits(Rows(all, n, r, r + 1), run(r, r + 1))) << r;
  for (const int64_t size : {33, 48, 65, 261, 272, 273}) {
    EXPECT_TRUE(SameBits(Rows(all, n, 5, 5 + size), run(5, 5 + size))) << size << " rows";
  }
}

TEST_P(InvarianceTest, ShardedMatmulOfManyRowsAgreesWithOne) {
  auto ops = Make();
  Random random(6);
  const int64_t n = 75, k = 610, rows = 277;
  const std::vector<int64_t> cuts = {0, 64, 100, 100, 164, 356, 420, 484, 610};
  const std::vector<float> w = random.Normal(n * k), x = random.Normal(rows * k);
  for (const int ranks : {1, 3, 8}) {
    const std::vector<float> all = MergedSums(*ops, w, n, k, cuts, ranks, x, rows);
    for (int64_t r = 0; r < rows; r += 23) {
      EXPECT_TRUE(
          SameBits(Rows(all, n, r, r + 1), MergedSums(*ops, w, n, k, cuts, 1, Rows(x, k, r, r + 1), 1)))
          << "row " << r << ", " << ranks << " ranks";
    }
  }
}

TEST_P(InvarianceTest, ShardedMatmul) {
  auto ops = Make();
  EXPECT_TRUE(SumsDoNotDependOnRanks(*ops, 48, EvenCuts(576, 32, 8), 33));
  EXPECT_TRUE(SumsDoNotDependOnRanks(*ops, 33, EvenCuts(448, 64, 5), 7));
  EXPECT_TRUE(SumsDoNotDependOnRanks(*ops, 20, EvenCuts(640, 32, 12), 17));
  EXPECT_TRUE(SumsDoNotDependOnRanks(*ops, 40, EvenCuts(192, 64, 8), 10)) << "empty shards";
  EXPECT_TRUE(SumsDoNotDependOnRanks(*ops, 17, {0, 5, 5, 64, 65, 100, 100, 131, 200}, 12)) << "unequal cuts";
}

TEST_P(InvarianceTest, Attention) { EXPECT_TRUE(AttentionIsInvariant(*Make())); }

TEST_P(InvarianceTest, AttentionOverCodes) {
  for (const KvType type : {KvType::kInt8, KvType::kFp8}) {
    if (kTestsDevice) {  // fewer cuts: the loops are those of 16 bits but for their loads
      auto ops = OrDie(CreateOps({GetParam().rung, GetParam().compute, 1, type, GetParam().fp16}));
      EXPECT_TRUE(
          SameBits(AttendInCalls(*ops, 290, {290}, 1, 32), AttendInCalls(*ops, 290, {255, 2, 30, 1}, 2, 16)))
          << KvTypeName(type);
      continue;
    }
    if (type == KvType::kFp8 && (GetParam().rung == "reference" || !ReadsCodes(GetParam()))) continue;
    EXPECT_TRUE(AttentionIsInvariant(*OrDie(CreateOps({GetParam().rung, GetParam().compute, 2, type}))))
        << KvTypeName(type);
  }
}

TEST_P(InvarianceTest, NumberOfThreads) {
  const auto run = [&](int threads) {
    auto ops = Make(threads);
    std::vector<float> result = AttendInCalls(*ops, 300, {280, 1}, 9, 32);
    Random random(8);
    const std::vector<float> w = random.Normal(200 * 576), x = random.Normal(70 * 576);
    const std::vector<float> sums = MergedSums(*ops, w, 200, 576, EvenCuts(576, 64, 8), 1, x, 70);
    result.insert(result.end(), sums.begin(), sums.end());
    return result;
  };
  const std::vector<float> one = run(1);
  for (const int threads : {2, 3, 5}) EXPECT_TRUE(SameBits(one, run(threads))) << threads << " threads";
}

TEST_P(InvarianceTest, RowwiseOps) {
  auto ops = Make();
  Random random(4);
  const int64_t rows = 40, hidden = 203;
  const std::vector<float> residual = random.Normal(rows * hidden), add = random.Normal(rows * hidden),
                           weight = random.Normal(hidden);
  EXPECT_TRUE(RowsAreInvariant(rows, hidden, [&](int64_t begin, int64_t end) {
    DeviceMatrix r(*ops, end - begin, hidden, Rows(residual, hidden, begin, end)),
        y(*ops, end - begin, hidden);
    DeviceArray<float> add_a(*ops, Rows(add, hidden, begin, end)), weight_a(*ops, weight);
    RmsNormParams p;
    p.residual = r.view();
    p.add = add_a.data();
    p.weight = weight_a.data();
    p.y = y.view();
    EXPECT_TRUE(ops->RmsNorm(p).ok());
    return y.Get();
  })) << "RmsNorm";
  const int64_t cols = 101;
  const std::vector<float> gate_up = random.Normal(rows * 2 * cols, 3);
  EXPECT_TRUE(RowsAreInvariant(rows, cols, [&](int64_t begin, int64_t end) {
    DeviceMatrix x(*ops, end - begin, 2 * cols, Rows(gate_up, 2 * cols, begin, end)),
        y(*ops, end - begin, cols);
    EXPECT_TRUE(ops->SwiGlu({x.view(), y.view()}).ok());
    return y.Get();
  })) << "SwiGlu";
}

// FFN columns of SwiGlu are cut differently for each number of ranks: an element must not see its place.
TEST_P(InvarianceTest, SwiGluDoesNotDependOnThePlaceOfAColumn) {
  auto ops = Make();
  Random random(6);
  const int64_t cols = 96;
  const std::vector<float> gate = random.Normal(cols, 3), up = random.Normal(cols, 3);
  const auto run = [&](int64_t begin, int64_t end) {
    std::vector<float> both(gate.begin() + begin, gate.begin() + end);
    both.insert(both.end(), up.begin() + begin, up.begin() + end);
    DeviceMatrix x(*ops, 1, 2 * (end - begin), both), y(*ops, 1, end - begin);
    EXPECT_TRUE(ops->SwiGlu({x.view(), y.view()}).ok());
    return y.Get();
  };
  const std::vector<float> all = run(0, cols);
  for (int64_t begin = 0; begin < cols; begin += 5) {
    for (const int64_t end : {begin + 1, std::min(cols, begin + 11), cols}) {
      EXPECT_TRUE(SameBits(run(begin, end), {all.begin() + begin, all.begin() + end})) << begin << " " << end;
    }
  }
}

// Outputs (rows of W) are cut differently for each number of ranks, too.
TEST_P(InvarianceTest, MatmulDoesNotDependOnThePlaceOfAnOutput) {
  auto ops = Make();
  Random random(7);
  const int64_t n = 100, k = 130, rows = 5;
  const std::vector<float> w = random.Normal(n * k), x = random.Normal(rows * k);
  const auto run = [&](int64_t begin, int64_t end) {
    PackWeightParams pack;
    pack.pieces = {{{w.data(), DType::kF32, n, k}, {begin, end}}};
    pack.cols = {0, k};
    auto weight = OrDie(ops->PackWeight(pack));
    DeviceMatrix x_m(*ops, rows, k, x), y(*ops, rows, end - begin);
    MatmulParams p;
    p.x = x_m.view();
    p.weight = weight.get();
    p.y = y.view();
    EXPECT_TRUE(ops->Matmul(p).ok());
    return y.Get();
  };
  const std::vector<float> all = run(0, n);
  for (const Range range : {Range{0, 1}, Range{3, 50}, Range{50, 100}, Range{99, 100}, Range{17, 81}}) {
    const std::vector<float> part = run(range.begin, range.end);
    for (int64_t t = 0; t < rows; ++t) {
      EXPECT_TRUE(SameBits(Rows(part, range.size(), t, t + 1),
                           {all.begin() + t * n + range.begin, all.begin() + t * n + range.end}));
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Rungs, InvarianceTest, testing::ValuesIn(RungCases()), RungCaseName);

// ---- Planted faults -----------------------------------------------------------------------------

struct FaultyWeight : PackedWeight {
  int64_t n() const override { return rows; }
  int64_t k() const override { return cols; }
  int64_t bytes() const override { return rows * cols * 4; }
  const std::vector<Subtree>& subtrees() const override { return trees; }

  int64_t rows = 0, cols = 0;
  std::vector<float> values;
  std::vector<Subtree> trees;
  std::vector<int64_t> cuts;  // relative to the first column
  int first_shard = 0;
};

// Keeps weights of its own; the faults are in the products.
class FaultyOps : public ReferenceOps {
 public:
  FaultyOps() : ReferenceOps(OpsOptions{"reference", Compute::kFp32, 1}) {}
  absl::StatusOr<std::unique_ptr<PackedWeight>> PackWeight(const PackWeightParams& p) override {
    auto weight = std::make_unique<FaultyWeight>();
    const WeightSource& source = p.pieces[0].source;
    weight->rows = source.rows;
    weight->cols = p.cols.size();
    for (int64_t r = 0; r < source.rows; ++r) {
      const float* row = static_cast<const float*>(source.data) + r * source.cols;
      weight->values.insert(weight->values.end(), row + p.cols.begin, row + p.cols.end);
    }
    for (const int64_t cut : p.shard_cuts) weight->cuts.push_back(cut - p.cols.begin);
    weight->first_shard = p.first_shard;
    if (!p.shard_cuts.empty()) {
      weight->trees = SubtreesOf(p.first_shard, p.first_shard + static_cast<int>(p.shard_cuts.size()) - 1);
    }
    return weight;
  }
};

// The order of K depends on the number of rows: what a library does that picks a kernel by M.
class OrderByRowsOps : public FaultyOps {
 public:
  absl::Status Matmul(const MatmulParams& p) override {
    const auto& w = dynamic_cast<const FaultyWeight&>(*p.weight);
    for (int64_t t = 0; t < p.x.rows; ++t) {
      const float* x = static_cast<const float*>(p.x.data) + t * p.x.stride;
      for (int64_t n = 0; n < w.rows; ++n) {
        float sum = 0;
        for (int64_t i = 0; i < w.cols; ++i) {
          const int64_t k = p.x.rows > 16 ? w.cols - 1 - i : i;
          sum += x[k] * w.values[n * w.cols + k];
        }
        static_cast<float*>(p.y.data)[t * p.y.stride + n] = sum;
      }
    }
    return absl::OkStatus();
  }
};

// Adds the shards of a subtree from left to right instead of in the tree's order: what a plain all-reduce
// does.
class LinearReductionOps : public FaultyOps {
 public:
  absl::Status ShardedMatmul(const ShardedMatmulParams& p) override {
    const auto& w = dynamic_cast<const FaultyWeight&>(*p.weight);
    for (size_t i = 0; i < w.trees.size(); ++i) {
      const int64_t begin = w.cuts[w.trees[i].first - w.first_shard];
      const int64_t end = w.cuts[w.trees[i].first - w.first_shard + w.trees[i].count];
      for (int64_t t = 0; t < p.x.rows; ++t) {
        const float* x = static_cast<const float*>(p.x.data) + t * p.x.stride;
        for (int64_t n = 0; n < w.rows; ++n) {
          float sum = 0;
          for (int64_t k = begin; k < end; ++k) sum += x[k] * w.values[n * w.cols + k];
          p.sums[(static_cast<int64_t>(i) * p.x.rows + t) * w.rows + n] = sum;
        }
      }
    }
    return absl::OkStatus();
  }
};

// Prefill and decode differ by the last bit of one factor.
class PrefillByOtherScaleOps : public ReferenceOps {
 public:
  PrefillByOtherScaleOps() : ReferenceOps(OpsOptions{"reference", Compute::kFp32, 1}) {}
  absl::Status Attention(const AttentionParams& p) override {
    AttentionParams changed = p;
    if (p.out.rows > 1) changed.scale = std::nextafter(p.scale, 1.0f);
    return ReferenceOps::Attention(changed);
  }
};

TEST(PlantedFaultTest, OrderOfKThatDependsOnRowsIsCaught) {
  OrderByRowsOps faulty;
  EXPECT_FALSE(MatmulRowsAreInvariant(faulty, 37, 75, 64));
  EXPECT_TRUE(MatmulRowsAreInvariant(faulty, 37, 75, 16)) << "below its threshold the kernel is sound";
}

TEST(PlantedFaultTest, ReductionThatDependsOnRanksIsCaught) {
  LinearReductionOps faulty;
  EXPECT_FALSE(SumsDoNotDependOnRanks(faulty, 48, EvenCuts(576, 32, 8), 5));
  EXPECT_FALSE(SumsDoNotDependOnRanks(faulty, 33, EvenCuts(448, 64, 5), 7));
  EXPECT_FALSE(SumsDoNotDependOnRanks(faulty, 20, EvenCuts(640, 32, 12), 5));
}

TEST(PlantedFaultTest, AttentionThatDependsOnTheCallIsCaught) {
  PrefillByOtherScaleOps faulty;
  EXPECT_FALSE(AttentionIsInvariant(faulty));
}

TEST(RungsTest, Print) {
  PrintRungs();
  EXPECT_FALSE(RungCases().empty());
}

}  // namespace
}  // namespace phalanx
