// The results of a load test for people and programs.
#pragma once

#include <string>
#include <utility>
#include <vector>

#include "client/bench_stats.h"

namespace phalanx::bench {

// What was asked for, as names and values in order: it goes into every report.
using Setting = std::vector<std::pair<std::string, std::string>>;

std::string ToTable(const Results& results);
std::string ToJson(const Setting& setting, const Results& results, const Timeline& timeline);
// One page with everything in it: nothing is fetched, no script runs.
std::string ToHtml(const Setting& setting, const Results& results, const Timeline& timeline);

}  // namespace phalanx::bench
