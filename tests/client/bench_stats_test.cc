#include "client/bench_stats.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <nlohmann/json.hpp>
#include <random>

#include "client/bench_report.h"

namespace phalanx::bench {
namespace {

using ::testing::HasSubstr;
using ::testing::Not;

TEST(TimesTest, NothingIsZero) {
  const Times times;
  EXPECT_EQ(times.count(), 0u);
  EXPECT_EQ(times.mean(), 0);
  EXPECT_EQ(times.Percentile(50), 0);
}

TEST(TimesTest, PercentilesAreRightToAPercent) {
  std::mt19937 random(7);
  std::lognormal_distribution<double> draw(-3, 2);
  Times times;
  std::vector<double> all;
  for (int i = 0; i < 5000; ++i) {
    all.push_back(draw(random));
    times.Add(all.back());
  }
  std::sort(all.begin(), all.end());
  for (const double percent : {1.0, 50.0, 90.0, 95.0, 99.0}) {
    const double exact = all[static_cast<size_t>(percent / 100 * 5000) - 1];
    EXPECT_NEAR(times.Percentile(percent) / exact, 1, 0.01) << percent;
  }
  EXPECT_EQ(times.Percentile(100), all.back());
  EXPECT_EQ(times.least(), all.front());
  EXPECT_EQ(times.most(), all.back());
  EXPECT_EQ(times.CountBetween(0, 1e9), 5000u);
}

TEST(TimesTest, TakesWhatIsTooShortAndTooLong) {
  Times times;
  for (const double seconds : {0.0, 1e-9, 1e9}) times.Add(seconds);
  EXPECT_LT(times.Percentile(30), 1e-6);
  EXPECT_EQ(times.Percentile(100), 1e9);
}

TEST(TimesTest, AddsUp) {
  Times one, two;
  one.Add(1);
  two.Add(3);
  two.Add(0.5);
  one.Add(two);
  EXPECT_EQ(one.count(), 3u);
  EXPECT_DOUBLE_EQ(one.mean(), 1.5);
  EXPECT_EQ(one.least(), 0.5);
  EXPECT_EQ(one.most(), 3);
}

Record Finished(double intended, double sent) {
  Record record;
  record.intended = intended;
  record.sent = sent;
  record.first = sent + 0.1;
  record.last = sent + 0.5;
  record.end = sent + 0.6;
  record.gaps = {0.2f, 0.2f};
  record.prompt_tokens = 10;
  record.output_tokens = 3;
  record.finished = true;
  return record;
}

TEST(ResultsTest, CountsFromTheIntendedStart) {
  Results results;
  results.Add(Finished(1, 3), 100);
  EXPECT_NEAR(results.first_token.most(), 2.1, 1e-9);
  EXPECT_NEAR(results.end_to_end.most(), 2.6, 1e-9);
  EXPECT_NEAR(results.lag.most(), 2, 1e-9);
  EXPECT_NEAR(results.per_token.most(), 0.2, 1e-9);
  EXPECT_EQ(results.inter_token.count(), 2u);
  EXPECT_EQ(results.output_tokens, 3u);
}

TEST(ResultsTest, TellsRefusedFromFailed) {
  Results results;
  results.Add(Finished(0, 0), 100);
  results.Add(Finished(99.9, 99.9), 100);  // ends after the window
  Record refused;
  refused.code = 8;
  refused.sent = 5;
  refused.end = 5.01;
  refused.retry_after = 1.5;
  results.Add(refused, 100);
  Record cut = refused;  // had begun
  cut.prompt_tokens = 10;
  cut.error = "code 8: too slow";
  results.Add(cut, 100);
  results.Add(cut, 100);
  Record half = Finished(0, 0);
  half.finished = false;
  results.Add(half, 100);
  EXPECT_EQ(results.sent, 6u);
  EXPECT_EQ(results.finished, 2u);
  EXPECT_EQ(results.window_finished, 1u);
  EXPECT_EQ(results.refused, 1u);
  EXPECT_EQ(results.failed, 3u);
  EXPECT_NEAR(results.refusal.most(), 0.01, 1e-9);
  EXPECT_EQ(results.retry_after.most(), 1.5);
  ASSERT_EQ(results.errors.size(), 2u);
  EXPECT_EQ(results.errors[0], std::make_pair(std::string("code 8: too slow"), uint64_t{2}));
}

TEST(ReportTest, SaysTheSameEverywhere) {
  Results results;
  for (int i = 0; i < 10; ++i) results.Add(Finished(i, i), 100);
  results.window = 10;
  results.window_tokens = 30;
  Timeline timeline;
  for (int i = 0; i < 10; ++i) {
    timeline.Add(Timeline::kStarted, i);
    timeline.Add(Timeline::kTokens, i, 3);
    timeline.Add(Timeline::kEnded, i + 0.6);
  }
  timeline.Add(Timeline::kTokens, 1e9);  // out of reach: left out
  const Setting setting = {{"model", "<a & \"b\">"}};
  const auto json = nlohmann::json::parse(ToJson(setting, results, timeline));
  EXPECT_EQ(json["requests"]["finished"], 10);
  EXPECT_EQ(json["output_tokens_per_second"], 3.0);
  EXPECT_EQ(json["total_tokens_per_second"], 13.0);
  EXPECT_NEAR(json["seconds"]["time_to_first_token"]["p50"].get<double>(), 0.1, 0.001);
  EXPECT_EQ(json["seconds"]["inter_token_latency"]["count"], 20);
  EXPECT_EQ(json["timeline"]["output_tokens"].size(), 10u);
  EXPECT_EQ(json["setting"]["model"], "<a & \"b\">");
  EXPECT_THAT(ToTable(results), HasSubstr("output tokens/s        3.0"));
  const std::string html = ToHtml(setting, results, timeline);
  EXPECT_THAT(html, HasSubstr("&lt;a &amp; &quot;b&quot;&gt;"));
  EXPECT_THAT(html, HasSubstr("<svg"));
  EXPECT_THAT(html, Not(HasSubstr("<script")));
  EXPECT_THAT(html, Not(HasSubstr("http")));
  EXPECT_THAT(html, Not(HasSubstr("nan")));
}

TEST(ReportTest, TakesARunWithoutAnything) {
  const Results results;
  const Timeline timeline;
  EXPECT_THAT(ToHtml({}, results, timeline), Not(HasSubstr("nan")));
  EXPECT_EQ(nlohmann::json::parse(ToJson({}, results, timeline))["requests"]["sent"], 0);
}

}  // namespace
}  // namespace phalanx::bench
