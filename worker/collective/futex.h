// Sleeping on a word of memory shared by threads or processes.
#pragma once

#include <atomic>
#include <cstdint>

namespace phalanx {

static_assert(std::atomic<uint32_t>::is_always_lock_free && sizeof(std::atomic<uint32_t>) == 4);

// Sleeps while `word` is `expected`, at most `timeout_ms`. Wake-ups may be spurious.
void FutexWait(const std::atomic<uint32_t>& word, uint32_t expected, int64_t timeout_ms);
// Wakes everybody who sleeps on `word`.
void FutexWakeAll(const std::atomic<uint32_t>& word);

}  // namespace phalanx
