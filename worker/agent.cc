#include "worker/agent.h"

#include <chrono>
#include <cstdlib>
#include <utility>

#include "absl/strings/str_cat.h"
#include "base/logging.h"

namespace phalanx {
namespace {

using internal::v1::AssignmentState;

// A failure's report is on its way in far less, unless the coordinator takes nothing.
constexpr std::chrono::milliseconds kReportTimeout{500};

}  // namespace

Agent::Agent(const WorkerConfig* config, PeerService* peers, const internal::v1::Hello& hello)
    : config_(config), peers_(peers), faults_(config->debug_faults) {
  const auto heartbeat = [this] {
    internal::v1::Heartbeat beat;
    beat.set_last_step_age_seconds(vitals_.last_step_age_seconds());
    beat.set_memory_bytes(vitals_.memory_bytes());
    return beat;
  };
  // Links post events at once; the queue is there, and the thread that reads it starts when all links are.
  for (size_t i = 0; i < config_->coordinators.size(); ++i) {
    CoordinatorLink::Events events;
    events.assign = [this, i](const internal::v1::Assign& assign) {
      Post([this, i, assign] { OnAssign(i, assign); });
    };
    events.release = [this, i](const internal::v1::Release& release) {
      Post([this, i, release] { OnRelease(i, release); });
    };
    events.lost = [this, i](const absl::Status&) { Post([this, i] { OnLinkLost(i); }); };
    links_.push_back(
        std::make_unique<CoordinatorLink>(config_->coordinators[i], hello, heartbeat, std::move(events)));
  }
  thread_ = std::thread([this] { Run(); });
}

Agent::~Agent() { Stop(); }

bool Agent::Stop() {
  const auto deadline = CondVar::Clock::now() + std::chrono::milliseconds(config_->exit_timeout_ms);
  for (const auto& link : links_) link->Stop();
  {
    MutexLock lock(mu_);
    stopping_ = true;
    changed_.NotifyAll();
    while (!stopped_) {
      if (!changed_.WaitUntil(mu_, deadline)) return false;
    }
  }
  if (thread_.joinable()) thread_.join();
  return true;
}

void Agent::Post(Event event) {
  MutexLock lock(mu_);
  events_.push_back(std::move(event));
  changed_.NotifyAll();
}

void Agent::Run() {
  while (true) {
    Event event;
    {
      MutexLock lock(mu_);
      while (events_.empty() && !stopping_) changed_.WaitFor(mu_, std::chrono::seconds(1));
      if (stopping_) break;
      event = std::move(events_.front());
      events_.pop_front();
    }
    event();
  }
  EndGroup("this worker leaves");
  MutexLock lock(mu_);
  stopped_ = true;
  changed_.NotifyAll();
}

void Agent::Report(size_t link, const std::string& group_id, uint64_t epoch, AssignmentState state,
                   const std::string& detail) {
  internal::v1::AssignmentStatus status;
  status.set_group_id(group_id);
  status.set_epoch(epoch);
  status.set_state(state);
  status.set_detail(detail);
  links_[link]->Send(status);
}

void Agent::EndGroup(const std::string& reason) {
  if (member_ == nullptr) return;
  const internal::v1::Assign assign = member_->assign();
  member_->Stop(reason);
  const int timeout_ms = member_->IsLoading() ? config_->load_timeout_ms : config_->teardown_timeout_ms;
  if (!member_->WaitFinished(CondVar::Clock::now() + std::chrono::milliseconds(timeout_ms))) {
    spdlog::critical("group {} epoch {} rank {} does not end within {} ms after '{}': this process ends",
                     assign.group_id(), assign.epoch(), assign.rank(), timeout_ms, reason);
    std::_Exit(1);
  }
  member_.reset();
  vitals_.Reset();
  spdlog::info("group {} epoch {} rank {} ended: {}", assign.group_id(), assign.epoch(), assign.rank(),
               reason);
}

void Agent::OnAssign(size_t link, const internal::v1::Assign& assign) {
  spdlog::info("coordinator {} assigns group {} epoch {} rank {} of {}: {}", links_[link]->address(),
               assign.group_id(), assign.epoch(), assign.rank(), assign.num_ranks(), assign.model().path());
  if (absl::Status s = GroupMember::Check(assign); !s.ok()) {
    Report(link, assign.group_id(), assign.epoch(), internal::v1::ASSIGNMENT_STATE_FAILED,
           std::string(s.message()));
    return;
  }
  if (member_ != nullptr) {
    const internal::v1::Assign& current = member_->assign();
    if (current.group_id() == assign.group_id() && current.epoch() == assign.epoch()) {
      spdlog::warn("group {} epoch {} is assigned already", assign.group_id(), assign.epoch());
      return;
    }
    if (owner_ != link) {
      Report(link, assign.group_id(), assign.epoch(), internal::v1::ASSIGNMENT_STATE_FAILED,
             absl::StrCat("this worker is rank ", current.rank(), " of group ", current.group_id(), " epoch ",
                          current.epoch(), ", assigned by coordinator ", links_[owner_]->address()));
      return;
    }
    EndGroup("a newer assignment came");
  }
  owner_ = link;
  const uint64_t generation = ++generation_;
  member_ = std::make_unique<GroupMember>(
      GroupEnvironment{config_, peers_, &vitals_, &faults_}, assign,
      [this, generation](AssignmentState state, const std::string& detail) {
        Post([this, generation, state, detail] { OnState(generation, state, detail); });
      });
}

void Agent::OnRelease(size_t link, const internal::v1::Release& release) {
  // A group that is not here has ended already; the coordinator wants to know just that.
  if (member_ != nullptr && owner_ == link && member_->assign().group_id() == release.group_id() &&
      member_->assign().epoch() == release.epoch()) {
    EndGroup(absl::StrCat("released: ", release.reason()));
  }
  Report(link, release.group_id(), release.epoch(), internal::v1::ASSIGNMENT_STATE_RELEASED, "");
}

void Agent::OnLinkLost(size_t link) {
  if (member_ != nullptr && owner_ == link) EndGroup("the coordinator that assigned it is lost");
}

void Agent::OnState(uint64_t generation, AssignmentState state, const std::string& detail) {
  if (member_ == nullptr || generation != generation_) return;
  const internal::v1::Assign& assign = member_->assign();
  Report(owner_, assign.group_id(), assign.epoch(), state, detail);
  if (state == internal::v1::ASSIGNMENT_STATE_READY) {
    spdlog::info("group {} epoch {} rank {} is ready", assign.group_id(), assign.epoch(), assign.rank());
  } else if (state == internal::v1::ASSIGNMENT_STATE_FAILED) {
    spdlog::error("group {} epoch {} rank {} failed: {}", assign.group_id(), assign.epoch(), assign.rank(),
                  detail);
    // The cause goes before the end of the leader's stream, which would say less.
    links_[owner_]->Flush(kReportTimeout);
    EndGroup("failed");
  }
}

}  // namespace phalanx
