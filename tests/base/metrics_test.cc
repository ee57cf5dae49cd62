#include "base/metrics.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <thread>

namespace phalanx::metrics {
namespace {

using ::testing::HasSubstr;

TEST(MetricsTest, WritesEveryTypeInOrder) {
  Registry registry;
  registry.AddGauge("b", "Second.")->Set(-0.1);
  registry.AddCounter("a_total", "First.", {{"x", "1"}})->Add(3);
  registry.AddCounter("a_total", "ignored", {{"x", "0"}})->Add();
  Histogram* h = registry.AddHistogram("c", "Third.", {0.5, 1}, {{"k", "v"}});
  h->Observe(0.5);  // a bound belongs to its bucket
  h->Observe(0.75, 2);
  h->Observe(7);
  EXPECT_EQ(registry.Write(),
            "# HELP a_total First.\n# TYPE a_total counter\na_total{x=\"0\"} 1\na_total{x=\"1\"} 3\n"
            "# HELP b Second.\n# TYPE b gauge\nb -0.1\n"
            "# HELP c Third.\n# TYPE c histogram\n"
            "c_bucket{k=\"v\",le=\"0.5\"} 1\nc_bucket{k=\"v\",le=\"1\"} 3\nc_bucket{k=\"v\",le=\"+Inf\"} 4\n"
            "c_sum{k=\"v\"} 9\nc_count{k=\"v\"} 4\n");
}

TEST(MetricsTest, TheSameNameAndLabelsAreTheSameMetric) {
  Registry registry;
  EXPECT_EQ(registry.AddCounter("a", "", {{"x", "1"}}), registry.AddCounter("a", "", {{"x", "1"}}));
  EXPECT_NE(registry.AddCounter("a", "", {{"x", "1"}}), registry.AddCounter("a", "", {{"x", "2"}}));
  EXPECT_EQ(registry.AddGauge("g", ""), registry.AddGauge("g", ""));
}

TEST(MetricsTest, EscapesLabelsAndHelp) {
  Registry registry;
  registry.AddGauge("a", "back\\slash, \"quotes\"\nand lines",
                    {{"x", "a\"b\\c\nd\xff\xed\xa0\x80\xe2\x82\xac"}});
  const std::string text = registry.Write();
  EXPECT_THAT(text, HasSubstr("# HELP a back\\\\slash, \"quotes\"\\nand lines\n"));
  // Bytes that are no UTF-8, surrogates among them, become U+FFFD each.
  EXPECT_THAT(text, HasSubstr("a{x=\"a\\\"b\\\\c\\nd"
                              "\xef\xbf\xbd\xef\xbf\xbd\xef\xbf\xbd\xef\xbf\xbd\xe2\x82\xac\"} 0\n"));
  // A character that breaks off.
  registry.AddGauge("b", "", {{"x", "\xe2\x82"}});
  EXPECT_THAT(registry.Write(), HasSubstr("b{x=\"\xef\xbf\xbd\xef\xbf\xbd\"} 0\n"));
}

TEST(MetricsTest, WritesNumbersThatReadBackTheSame) {
  Registry registry;
  Gauge* g = registry.AddGauge("g", "");
  const auto written = [&] {
    const std::string text = registry.Write();
    return text.substr(text.rfind(' ') + 1);
  };
  for (const double value : {0.1, 1.0 / 3, 1e300, -2.5e-300, 123456789.0, 0.0}) {
    g->Set(value);
    EXPECT_EQ(std::stod(written()), value);
  }
  g->Set(std::numeric_limits<double>::infinity());
  EXPECT_EQ(written(), "+Inf\n");
  g->Set(-std::numeric_limits<double>::infinity());
  EXPECT_EQ(written(), "-Inf\n");
  g->Set(std::nan(""));
  EXPECT_EQ(written(), "NaN\n");
}

TEST(MetricsTest, SetGaugesForgetsTheOthers) {
  Registry registry;
  registry.SetGauges("g", "Help.", {{{{"x", "1"}}, 1}, {{{"x", "2"}}, 2}});
  registry.SetGauges("g", "Help.", {{{{"x", "2"}}, 3}});
  EXPECT_EQ(registry.Write(), "# HELP g Help.\n# TYPE g gauge\ng{x=\"2\"} 3\n");
  registry.SetGauges("g", "Help.", {});
  EXPECT_EQ(registry.Write(), "");
}

TEST(MetricsTest, AnAliasIsWrittenWithTheSameValues) {
  Registry registry;
  registry.Alias("vllm:a_total", "a_total");
  EXPECT_EQ(registry.Write(), "");
  registry.AddCounter("a_total", "Help.")->Add(2);
  EXPECT_EQ(registry.Write(),
            "# HELP a_total Help.\n# TYPE a_total counter\na_total 2\n"
            "# HELP vllm:a_total Help.\n# TYPE vllm:a_total counter\nvllm:a_total 2\n");
}

TEST(MetricsTest, CountsFromManyThreads) {
  Registry registry;
  Counter* counter = registry.AddCounter("c", "");
  Histogram* histogram = registry.AddHistogram("h", "", {1});
  std::vector<std::thread> threads;
  for (int i = 0; i < 4; ++i) {
    threads.emplace_back([&] {
      for (int k = 0; k < 10000; ++k) {
        counter->Add();
        histogram->Observe(0.25);
      }
    });
  }
  for (int i = 0; i < 20; ++i) EXPECT_THAT(registry.Write(), HasSubstr("h_count "));
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(counter->value(), 40000u);
  EXPECT_THAT(histogram->counts(), ::testing::ElementsAre(40000, 0));
  EXPECT_EQ(histogram->sum(), 10000);
}

TEST(MetricsTest, SaysWhatTheProcessUses) {
  Registry registry;
  UpdateProcessMetrics(&registry);
  const double resident = registry.AddGauge("process_resident_memory_bytes", "")->value();
  EXPECT_GT(resident, 1e6);
  EXPECT_LT(resident, 1e11);
  EXPECT_GT(registry.AddGauge("process_open_fds", "")->value(), 2);
  const double began = registry.AddGauge("process_start_time_seconds", "")->value();
  EXPECT_NEAR(began, static_cast<double>(std::time(nullptr)), 600);
  EXPECT_THAT(registry.Write(), HasSubstr("# TYPE process_cpu_seconds_total counter\n"));
}

TEST(MetricsDeathTest, NamesAndTypesMustFit) {
  Registry registry;
  registry.AddCounter("a", "");
  EXPECT_DEATH(registry.AddGauge("a", ""), "a");
  EXPECT_DEATH(registry.AddGauge("1a", ""), "1a");
  EXPECT_DEATH(registry.AddGauge("b", "", {{"x:y", ""}}), "x:y");
}

}  // namespace
}  // namespace phalanx::metrics
