#include "device_graph.h"

#include <utility>

#ifdef LIBVAR_WITH_CUDA
#include <ATen/cuda/CUDAEvent.h>
#include <ATen/cuda/CUDAGraph.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>
#endif

namespace libvar {

#ifdef LIBVAR_WITH_CUDA

struct DeviceGraph::Recording {
  at::cuda::CUDAGraph graph;

  explicit Recording(const std::function<void()>& work) {
    // Only calls of this thread must not disturb the recording; others may allocate.
    graph.capture_begin({0, 0}, cudaStreamCaptureModeThreadLocal);
    try {
      work();
    } catch (...) {
      try {
        graph.capture_end();
      } catch (...) {  // the first error says more
      }
      throw;
    }
    graph.capture_end();
  }
};

DeviceGraph::DeviceGraph(at::Device device, std::function<void()> work) : work_(std::move(work)) {
  if (device.is_cuda()) recording_ = std::make_unique<Recording>(work_);
}

void DeviceGraph::replay() const {
  if (recording_) {
    recording_->graph.replay();
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

DeviceGraph::DeviceGraph(at::Device /*device*/, std::function<void()> work)
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
