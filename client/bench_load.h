// The load of `phalanx bench`: sends requests as a plan says and records what comes back.
#pragma once

#include <grpcpp/grpcpp.h>

#include <atomic>
#include <cstdint>
#include <functional>
#include <memory>
#include <vector>

#include "client/bench_stats.h"
#include "phalanx/v1/inference.grpc.pb.h"

namespace phalanx::bench {

struct LoadOptions {
  int concurrency = 1;    // closed loop: so many requests at a time, each follows the end of one
  double rate = 0;        // open loop when above 0: so many requests begin a second, whatever happens
  double burstiness = 1;  // of the open loop: 1 is a Poisson process, less is burstier, more is steadier
  double duration = 0;    // seconds in which requests begin; 0: no limit
  int64_t requests = 0;   // that begin; 0: no limit
  int64_t warmup = 0;     // further ones before, one after the other of a closed loop, which do not count
  double timeout = 600;   // of a request
  uint64_t seed = 0;
  const std::atomic<bool>* stop = nullptr;  // set: begin no more and cancel what runs
};

// Called on one thread. `number` counts from 0; the warm-up's come first.
using MakeRequest = std::function<phalanx::v1::GenerateRequest(int64_t number)>;

// Runs it to the end: until the last request has ended, which their timeout bounds. `channels` take turns.
Results RunLoad(const LoadOptions& options, const std::vector<std::shared_ptr<grpc::Channel>>& channels,
                const MakeRequest& make, Timeline* timeline);

}  // namespace phalanx::bench
