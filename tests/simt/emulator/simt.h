#pragma once

// A CUDA block on the CPU: every thread is a fiber, and fibers change places only where CUDA
// threads meet: at
// __syncthreads and at the warp collectives. Between two such places a thread runs alone, so a
// kernel that forgets to meet reads memory that was not written yet, which is poisoned, or was
// written too early; which of the two depends on the order of the threads, therefore tests run
// every kernel in all orders.
//
// Caught with a message: a barrier that some thread of the block does not reach, or reaches at
// another line; a collective whose mask names a lane that is elsewhere, has ended, or came with
// another mask or operation; a shuffle from a lane outside the mask; a block or a shared memory
// size that no GPU takes; writes past the dynamic shared memory; asynchronous copies that are not
// aligned, don't go to shared memory or are still under way at a thread's end. An asynchronous copy
// arrives as late as it may: when its thread waits for it. Not modelled: the memory order between
// the threads of a warp in one stretch, timing, and several blocks at once.
//
// The kernels see this through the headers in include/, which bear the names of CUDA's.

#include <cstddef>
#include <cstdint>
#include <functional>
#include <stdexcept>
#include <string>

namespace simt {

struct Error : std::runtime_error {
  using std::runtime_error::runtime_error;
};

/// Which of the threads that could go on does.
enum class LaneOrder {
  kForward,     ///< the first: warp 0 runs ahead as far as it can
  kReverse,     ///< the last
  kRoundRobin,  ///< the one after the thread that ran before
  kRandom,      ///< drawn by `seed`
};

inline constexpr LaneOrder kAllLaneOrders[] = {LaneOrder::kForward, LaneOrder::kReverse,
                                               LaneOrder::kRoundRobin, LaneOrder::kRandom};

struct Schedule {
  LaneOrder order = LaneOrder::kForward;
  std::uint64_t seed = 1;
};

/// For all launches from now on.
void set_schedule(Schedule schedule);

struct Index3 {
  unsigned x = 0;
  unsigned y = 0;
  unsigned z = 0;
};

struct Size3 {
  unsigned x = 1;
  unsigned y = 1;
  unsigned z = 1;
};

/// What the running thread knows of itself.
extern Index3 thread_index;
extern Index3 block_index;
extern Size3 block_size;
extern Size3 grid_size;

inline constexpr std::size_t kMaxSharedBytes = 227 * 1024;

/// What a kernel is told that asks for the size of the device.
inline constexpr int kNumMultiprocessors = 2;

/// Runs `body` once for each thread of the grid, block after block.
/// @throws simt::Error  for everything named above; what the body throws is passed on
void run_grid(Size3 grid, Size3 block, std::size_t shared_bytes, const std::function<void()>& body);

/// What the stream's previous kernel still has to write, for the next launch. It is done before the
/// kernel starts or, where that is launched to start beside the previous one, when its first thread
/// waits.
void set_previous_kernel(std::function<void()> rest);

/// Called at each launch. Every thread of a kernel that starts beside the previous one has to wait
/// for it: the kernel after counts on that.
void begin_kernel(bool starts_beside_previous);

/// griddepcontrol.wait
void wait_for_previous_kernel();

/// Where in a kernel something was called.
struct Site {
  const char* file;
  int line;
};

enum class Collective { kShuffle, kBallot, kAny, kAll, kSync, kOperation };

void block_barrier(Site site);

/// Meets the other lanes of `mask`. Returns the `value` of lane `source` for a shuffle, for ballot,
/// any and all the lanes whose value is not 0.
std::uint64_t warp_collective(Collective kind, unsigned mask, std::uint64_t value, int source,
                              Site site);

/// What all 32 lanes do at once: called with each lane's own argument.
using WarpOperation = void (*)(void* const (&lanes)[32]);

/// Meets the whole warp; then `operation` runs once, before any lane goes on.
void warp_operation(WarpOperation operation, void* lane, Site site);

/// Lane of the running thread in its warp.
int lane_index();

/// Throws for what the running thread did at `site`.
[[noreturn]] void fail(Site site, const std::string& what);

/// Whether `bytes` from `address` on lie in the dynamic shared memory of the block.
bool is_shared(const void* address, std::size_t bytes);

/// cp.async of 16 bytes to shared memory, of which `source_bytes` are read and the others are zero.
void copy_async(void* shared, const void* source, int source_bytes, Site site);

/// cp.async.commit_group
void commit_copies();

/// cp.async.wait_group: the copies of the running thread arrive, all but the last `pending` groups.
void wait_for_copies(int pending);

}  // namespace simt
