#include "device_graph.h"

#include <utility>

#ifdef LIBVAR_WITH_CUDA
#include <ATen/cuda/CUDAEvent.h>
#include <ATen/cuda/CUDAGraph.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>

#include <mutex>
#include <optional>
#endif

namespace libvar {

#ifdef LIBVAR_WITH_CUDA

namespace {

/// LibTorch keeps a list of all graphs of a device without a lock.
std::mutex& recording_mutex() {
  static std::mutex mutex;
  return mutex;
}

}  // namespace

struct DeviceGraph::Recording {
  std::optional<at::cuda::CUDAGraph> graph;

  Recording(const std::function<void()>& work, Recording* neighbour) {
    const std::lock_guard lock(recording_mutex());
    graph.emplace();
    // Only calls of this thread must not disturb the recording; others may allocate.
    graph->capture_begin(neighbour != nullptr ? neighbour->graph->pool() : at::cuda::MempoolId_t{},
                         cudaStreamCaptureModeThreadLocal);
    try {
      work();
    } catch (...) {
      try {
        graph->capture_end();
      } catch (...) {  // the first error says more
      }
      graph.reset();
      throw;
    }
    graph->capture_end();
  }

  ~Recording() {
    const std::lock_guard lock(recording_mutex());
    graph.reset();
  }

  Recording(const Recording&) = delete;
  Recording& operator=(const Recording&) = delete;
};

DeviceGraph::DeviceGraph(at::Device device, std::function<void()> work,
                         const DeviceGraph* neighbour) {
  if (device.is_cuda()) {
    recording_ = std::make_unique<Recording>(
        work, neighbour != nullptr ? neighbour->recording_.get() : nullptr);
  } else {
    work_ = std::move(work);
  }
}

void DeviceGraph::replay() const {
  if (recording_) {
    recording_->graph->replay();
  } else {
    work_();
  }
}

struct WorkQueue::Stream {
  c10::cuda::CUDAStream stream;
};

WorkQueue::WorkQueue(at::Device device) {
  if (!device.is_cuda()) return;
  stream_ = std::make_unique<Stream>(
      Stream{c10::cuda::getStreamFromPool(/*isHighPriority=*/false, device.index())});
}

void WorkQueue::run(const std::function<void()>& work) const {
  if (!stream_) return work();
  const c10::cuda::CUDAStream current =
      c10::cuda::getCurrentCUDAStream(stream_->stream.device_index());
  if (current != stream_->stream) {
    at::cuda::CUDAEvent asked;
    asked.record(current);
    asked.block(stream_->stream);
  }
  const c10::cuda::CUDAStreamGuard guard(stream_->stream);
  work();
}

void WorkQueue::wait() const {
  if (stream_) stream_->stream.synchronize();
}

#else

struct DeviceGraph::Recording {};

DeviceGraph::DeviceGraph(at::Device /*device*/, std::function<void()> work,
                         const DeviceGraph* /*neighbour*/)
    : work_(std::move(work)) {}

void DeviceGraph::replay() const {
  work_();
}

struct WorkQueue::Stream {};

WorkQueue::WorkQueue(at::Device /*device*/) {}

void WorkQueue::run(const std::function<void()>& work) const {
  work();
}

void WorkQueue::wait() const {}

#endif

DeviceGraph::~DeviceGraph() = default;
WorkQueue::~WorkQueue() = default;

}  // namespace libvar
