#include "simt.h"

#include <algorithm>
#include <array>
#include <bit>
#include <cstring>
#include <deque>
#include <exception>
#include <memory>
#include <random>
#include <utility>
#include <vector>

#include "fiber.h"

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#endif

namespace libvar::cuda {

// What kernels/cuda/launch.cuh declares: the dynamic shared memory of the one block that runs.
inline constexpr std::size_t kCanaryBytes = 4096;
alignas(128) unsigned char libvar_dynamic_shared[simt::kMaxSharedBytes + kCanaryBytes];

}  // namespace libvar::cuda

namespace simt {

Index3 thread_index;
Index3 block_index;
Size3 block_size;
Size3 grid_size;

namespace {

constexpr int kMaxThreads = 1024;
constexpr int kWarpSize = 32;
constexpr std::size_t kStackBytes =
    256 * 1024;                          // reserved, not used: the sanitizers' frames are large
constexpr unsigned char kPoison = 0xff;  // NaN in every floating type, no valid bool
constexpr unsigned char kCanary = 0xa5;

/// A group of asynchronous copies of one thread, in the order in which they were asked for.
struct Copy {
  void* to;
  const void* from;
  std::size_t bytes;
};

using CopyGroup = std::vector<Copy>;

enum class State { kReady, kAtBarrier, kAtCollective, kDone };

struct Thread {
  Index3 index;
  State state = State::kDone;
  Site site{};
  Collective kind{};
  unsigned mask = 0;
  int source = 0;
  std::uint64_t value = 0;
  std::uint64_t result = 0;
  WarpOperation operation = nullptr;
  void* operand = nullptr;
  bool has_waited = false;  ///< for the stream's previous kernel
  CopyGroup open_copies;
  std::deque<CopyGroup> copies;
  std::unique_ptr<Fiber> fiber;
};

/// Threads that can go on.
class ReadySet {
 public:
  void add(int i) { words_[i / 64] |= std::uint64_t{1} << (i % 64); }

  void remove(int i) { words_[i / 64] &= ~(std::uint64_t{1} << (i % 64)); }

  void clear() { words_.fill(0); }

  /// The first at or after i, -1 if there is none.
  int first_from(int i) const {
    for (int word = i / 64; word < kWords; ++word, i = word * 64) {
      const std::uint64_t bits = words_[word] >> (i % 64);
      if (bits != 0) return i + std::countr_zero(bits);
    }
    return -1;
  }

  int last() const {
    for (int word = kWords - 1; word >= 0; --word) {
      if (words_[word] != 0) return word * 64 + 63 - std::countl_zero(words_[word]);
    }
    return -1;
  }

 private:
  static constexpr int kWords = kMaxThreads / 64;
  std::array<std::uint64_t, kWords> words_{};
};

struct Machine {
  std::vector<Thread> threads = std::vector<Thread>(kMaxThreads);
  int num_threads = 0;
  std::size_t shared_bytes = 0;
  int num_at_barrier = 0;
  int num_done = 0;
  int running = -1;
  bool starts_beside_previous = false;  ///< the kernel that is launched next
  ReadySet ready;
  std::array<int, kMaxThreads / kWarpSize> missing{};
  std::exception_ptr error;
  const std::function<void()>* body = nullptr;
  Schedule schedule;
  std::mt19937_64 random;
};

Machine& machine() {
  static Machine the_machine;
  return the_machine;
}

std::string describe(Site site) {
  return std::string(site.file) + ":" + std::to_string(site.line);
}

std::string describe(const Thread& thread, int index) {
  std::string text = "thread " + std::to_string(index);
  if (thread.state == State::kDone) return text + " has ended";
  if (thread.state == State::kAtBarrier)
    return text + " waits at the barrier of " + describe(thread.site);
  if (thread.state == State::kAtCollective)
    return text + " waits at the collective of " + describe(thread.site);
  return text + " runs";
}

void suspend_running() {
  Machine& m = machine();
  m.threads[m.running].fiber->suspend();
}

void make_ready(int index) {
  Machine& m = machine();
  m.threads[index].state = State::kReady;
  m.ready.add(index);
}

void thread_main(void* argument) {
  auto* thread = static_cast<Thread*>(argument);
  Machine& m = machine();
  try {
    (*m.body)();
    const bool under_way = std::any_of(thread->copies.begin(), thread->copies.end(),
                                       [](const CopyGroup& group) { return !group.empty(); });
    if (under_way || !thread->open_copies.empty()) {
      throw Error("thread " + std::to_string(m.running) +
                  " ended with asynchronous copies under way");
    }
  } catch (...) {
    if (!m.error) m.error = std::current_exception();
  }
  thread->state = State::kDone;
  ++m.num_done;
}

int choose_next() {
  Machine& m = machine();
  int next = -1;
  switch (m.schedule.order) {
    case LaneOrder::kForward:
      return m.ready.first_from(0);
    case LaneOrder::kReverse:
      return m.ready.last();
    case LaneOrder::kRoundRobin:
      next = m.running + 1 < kMaxThreads ? m.ready.first_from(m.running + 1) : -1;
      break;
    case LaneOrder::kRandom:
      next =
          m.ready.first_from(static_cast<int>(m.random() % static_cast<unsigned>(m.num_threads)));
      break;
  }
  return next >= 0 ? next : m.ready.first_from(0);
}

[[noreturn]] void report_stuck() {
  const Machine& m = machine();
  int waiting = -1;
  int other = -1;
  for (int i = 0; i < m.num_threads; ++i) {
    if (waiting < 0 && m.threads[i].state != State::kDone) waiting = i;
  }
  for (int i = 0; i < m.num_threads; ++i) {
    const Thread& thread = m.threads[i];
    const bool differs = thread.state != m.threads[waiting].state ||
                         thread.site.line != m.threads[waiting].site.line;
    if (other < 0 && i != waiting && differs) other = i;
  }
  std::string text = "divergence: " + describe(m.threads[waiting], waiting);
  if (other >= 0) text += ", " + describe(m.threads[other], other);
  throw Error(text);
}

void run_block() {
  Machine& m = machine();
  m.num_done = 0;
  m.num_at_barrier = 0;
  m.running = -1;
  m.error = nullptr;
  m.ready.clear();
  for (int i = 0; i < m.num_threads; ++i) {
    Thread& thread = m.threads[i];
    // 17 cache lines apart: stacks that start at the same offset of a page would fight for the same
    // cache sets.
    if (!thread.fiber)
      thread.fiber =
          std::make_unique<Fiber>(kStackBytes, static_cast<std::size_t>(i % 61) * 17 * 64);
    thread.fiber->reset(&thread_main, &thread);
    thread.open_copies.clear();
    thread.copies.clear();
    thread.has_waited = false;
    make_ready(i);
  }
  while (m.num_done < m.num_threads) {
    const int next = choose_next();
    if (next < 0) report_stuck();
    m.running = next;
    m.ready.remove(next);
    thread_index = m.threads[next].index;
    m.threads[next].fiber->resume();
    if (m.error) std::rethrow_exception(m.error);
  }
}

void prepare_shared(std::size_t bytes) {
  unsigned char* shared = libvar::cuda::libvar_dynamic_shared;
#if defined(__SANITIZE_ADDRESS__)
  __asan_unpoison_memory_region(shared, sizeof(libvar::cuda::libvar_dynamic_shared));
#endif
  std::memset(shared, kPoison, bytes);
  std::memset(shared + bytes, kCanary, libvar::cuda::kCanaryBytes);
#if defined(__SANITIZE_ADDRESS__)
  __asan_poison_memory_region(shared + bytes, libvar::cuda::kCanaryBytes);
#endif
}

void check_canary(std::size_t bytes) {
#if defined(__SANITIZE_ADDRESS__)
  __asan_unpoison_memory_region(libvar::cuda::libvar_dynamic_shared,
                                sizeof(libvar::cuda::libvar_dynamic_shared));
#endif
  for (std::size_t i = 0; i < libvar::cuda::kCanaryBytes; ++i) {
    if (libvar::cuda::libvar_dynamic_shared[bytes + i] != kCanary) {
      throw Error("write past the dynamic shared memory: byte " + std::to_string(bytes + i) +
                  " of " + std::to_string(bytes));
    }
  }
}

/// Whether every lane of the mask waits at a collective. Remembers one that doesn't: asked for each
/// of 32 lanes, a scan of 32 would cost as much as the switches.
bool all_there(int first, int lane, unsigned mask) {
  Machine& m = machine();
  int& missing = m.missing[first / kWarpSize];
  const auto is_missing = [&](int other) {
    return ((mask >> other) & 1u) != 0 && m.threads[first + other].state != State::kAtCollective;
  };
  if (is_missing(missing)) return false;
  for (int i = 0; i < kWarpSize; ++i) {
    const int other =
        lane < kWarpSize / 2 ? kWarpSize - 1 - i : i;  // the one that likely comes last
    if (is_missing(other)) {
      missing = other;
      return false;
    }
  }
  return true;
}

void check_same_collective(int first, unsigned mask, const Thread& self) {
  Machine& m = machine();
  for (int other = 0; other < kWarpSize; ++other) {
    if (((mask >> other) & 1u) == 0) continue;
    const Thread& thread = m.threads[first + other];
    if (thread.mask != mask || thread.kind != self.kind || thread.site.line != self.site.line ||
        (self.kind == Collective::kOperation && thread.operation != self.operation) ||
        std::strcmp(thread.site.file, self.site.file) != 0) {
      fail(self.site, "mismatch: " + describe(thread, first + other) + " with mask " +
                          std::to_string(thread.mask) + ", not " + std::to_string(mask));
    }
  }
}

/// All lanes of the mask are there: gives each its result.
void complete_collective(int first, unsigned mask) {
  Machine& m = machine();
  if (m.threads[m.running].kind == Collective::kOperation) {
    void* lanes[kWarpSize];
    for (int lane = 0; lane < kWarpSize; ++lane) lanes[lane] = m.threads[first + lane].operand;
    m.threads[m.running].operation(lanes);
  }
  std::uint64_t votes = 0;
  for (int lane = 0; lane < kWarpSize; ++lane) {
    if (((mask >> lane) & 1u) != 0 && m.threads[first + lane].value != 0)
      votes |= std::uint64_t{1} << lane;
  }
  for (int lane = 0; lane < kWarpSize; ++lane) {
    if (((mask >> lane) & 1u) == 0) continue;
    Thread& thread = m.threads[first + lane];
    thread.result =
        thread.kind == Collective::kShuffle ? m.threads[first + thread.source].value : votes;
  }
  // Values are read before any lane can bring the next one.
  for (int lane = 0; lane < kWarpSize; ++lane) {
    if (((mask >> lane) & 1u) != 0) make_ready(first + lane);
  }
}

}  // namespace

[[noreturn]] void fail(Site site, const std::string& what) {
  throw Error(describe(site) + ", thread " + std::to_string(machine().running) + ": " + what);
}

void set_schedule(Schedule schedule) {
  machine().schedule = schedule;
  machine().random.seed(schedule.seed);
}

void run_grid(Size3 grid, Size3 block, std::size_t shared_bytes,
              const std::function<void()>& body) {
  Machine& m = machine();
  const std::uint64_t threads = std::uint64_t{block.x} * block.y * block.z;
  if (threads == 0 || threads > kMaxThreads)
    throw Error("a block of " + std::to_string(threads) + " threads");
  if (shared_bytes > kMaxSharedBytes)
    throw Error(std::to_string(shared_bytes) + " bytes of shared memory");
  m.num_threads = static_cast<int>(threads);
  m.shared_bytes = shared_bytes;
  m.body = &body;
  const bool must_wait = std::exchange(m.starts_beside_previous, false);
  block_size = block;
  grid_size = grid;
  for (unsigned i = 0; i < threads; ++i) {
    m.threads[i].index = {i % block.x, i / block.x % block.y, i / block.x / block.y};
  }
  const std::uint64_t num_blocks = std::uint64_t{grid.x} * grid.y * grid.z;
  for (std::uint64_t n = 0; n < num_blocks; ++n) {
    // No kernel may count on the order of the blocks either.
    const std::uint64_t b = m.schedule.order == LaneOrder::kReverse ? num_blocks - 1 - n : n;
    block_index = {static_cast<unsigned>(b % grid.x), static_cast<unsigned>(b / grid.x % grid.y),
                   static_cast<unsigned>(b / grid.x / grid.y)};
    prepare_shared(shared_bytes);
    run_block();
    check_canary(shared_bytes);
    if (!must_wait) continue;
    for (int i = 0; i < m.num_threads; ++i) {
      if (!m.threads[i].has_waited)
        throw Error("thread " + std::to_string(i) +
                    " has ended without waiting for the stream's previous kernel");
    }
  }
}

namespace {

std::function<void()>& rest_of_previous_kernel() {
  static std::function<void()> rest;
  return rest;
}

}  // namespace

void set_previous_kernel(std::function<void()> rest) {
  rest_of_previous_kernel() = std::move(rest);
}

void begin_kernel(bool starts_beside_previous) {
  machine().starts_beside_previous = starts_beside_previous;
  if (!starts_beside_previous) wait_for_previous_kernel();
}

void wait_for_previous_kernel() {
  Machine& m = machine();
  if (m.running >= 0) m.threads[m.running].has_waited = true;
  if (const auto rest = std::exchange(rest_of_previous_kernel(), nullptr)) rest();
}

int lane_index() {
  return machine().running % kWarpSize;
}

void block_barrier(Site site) {
  Machine& m = machine();
  Thread& self = m.threads[m.running];
  self.state = State::kAtBarrier;
  self.site = site;
  if (++m.num_at_barrier < m.num_threads) {
    suspend_running();
    return;
  }
  m.num_at_barrier = 0;
  for (int i = 0; i < m.num_threads; ++i) {
    if (m.threads[i].site.line != site.line ||
        std::strcmp(m.threads[i].site.file, site.file) != 0) {
      fail(site, "divergence: " + describe(m.threads[i], i));
    }
  }
  for (int i = 0; i < m.num_threads; ++i) make_ready(i);
  suspend_running();
}

std::uint64_t warp_collective(Collective kind, unsigned mask, std::uint64_t value, int source,
                              Site site) {
  Machine& m = machine();
  Thread& self = m.threads[m.running];
  const int lane = m.running % kWarpSize;
  const int first = m.running - lane;
  self.state = State::kAtCollective;
  self.site = site;
  self.kind = kind;
  self.mask = mask;
  self.value = value;
  self.source = source;
  const int num_lanes = m.num_threads - first < kWarpSize ? m.num_threads - first : kWarpSize;
  if (num_lanes < kWarpSize && (mask >> num_lanes) != 0)
    fail(site, "the mask names lanes that the block does not have");
  if (((mask >> lane) & 1u) == 0) fail(site, "the mask leaves out the calling lane");
  if (kind == Collective::kShuffle &&
      (source < 0 || source >= kWarpSize || ((mask >> source) & 1u) == 0)) {
    fail(site, "shuffle from lane " + std::to_string(source) + ", which is outside the mask");
  }
  if (all_there(first, lane, mask)) {
    check_same_collective(first, mask, self);
    complete_collective(first, mask);
  }
  suspend_running();
  return self.result;
}

void warp_operation(WarpOperation operation, void* lane, Site site) {
  Machine& m = machine();
  Thread& self = m.threads[m.running];
  self.operation = operation;
  self.operand = lane;
  warp_collective(Collective::kOperation, 0xffffffffu, 0, 0, site);
}

bool is_shared(const void* address, std::size_t bytes) {
  const auto* first = static_cast<const unsigned char*>(address);
  const unsigned char* shared = libvar::cuda::libvar_dynamic_shared;
  return first >= shared && first + bytes <= shared + machine().shared_bytes;
}

void copy_async(void* shared, const void* source, int source_bytes, Site site) {
  const auto aligned = [](const void* address) {
    return reinterpret_cast<std::uintptr_t>(address) % 16 == 0;
  };
  if (!aligned(shared) || !aligned(source)) fail(site, "cp.async needs addresses aligned to 16");
  if (!is_shared(shared, 16)) fail(site, "cp.async outside of the shared memory");
  if (source_bytes < 0 || source_bytes > 16) fail(site, "cp.async reads 0 to 16 bytes");
  Machine& m = machine();
  // What it will overwrite is not to be read any more: poison until it arrives.
  std::memset(shared, kPoison, 16);
  m.threads[m.running].open_copies.push_back(
      {shared, source, static_cast<std::size_t>(source_bytes)});
}

void commit_copies() {
  Thread& self = machine().threads[machine().running];
  self.copies.push_back(std::move(self.open_copies));
  self.open_copies.clear();
}

void wait_for_copies(int pending) {
  Thread& self = machine().threads[machine().running];
  while (self.copies.size() > static_cast<std::size_t>(pending)) {
    for (const Copy& copy : self.copies.front()) {
      auto* to = static_cast<unsigned char*>(copy.to);
      std::memcpy(to, copy.from, copy.bytes);
      std::memset(to + copy.bytes, 0, 16 - copy.bytes);
    }
    self.copies.pop_front();
  }
}

}  // namespace simt
