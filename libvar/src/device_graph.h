#pragma once

#include <c10/core/Device.h>

#include <functional>
#include <memory>

namespace libvar {

/// Work that is recorded once and asked of the device again and again at the price of one call.
///
/// CUDA: a graph; what `work` reads and writes must stay where it is, and everything that it does
/// not read from the device is as it was at the recording. CPU: the work itself, for tests.
class DeviceGraph {
 public:
  /// Records; nothing is computed. On CUDA inside WorkQueue::run, after `work` was done there once.
  /// @param neighbour  a graph that is never replayed beside this one, or null: both use the same
  ///                   memory for what they don't keep
  DeviceGraph(at::Device device, std::function<void()> work, const DeviceGraph* neighbour);
  ~DeviceGraph();
  DeviceGraph(const DeviceGraph&) = delete;
  DeviceGraph& operator=(const DeviceGraph&) = delete;

  /// Asks the device for the work.
  void replay() const;

 private:
  struct Recording;
  std::function<void()> work_;  // on the CPU
  std::unique_ptr<Recording> recording_;
};

/// A queue of work of its own on a device: graphs can't be recorded on the default one. On the CPU
/// work is done at once.
class WorkQueue {
 public:
  explicit WorkQueue(at::Device device);
  ~WorkQueue();
  WorkQueue(const WorkQueue&) = delete;
  WorkQueue& operator=(const WorkQueue&) = delete;

  /// Calls `work`; what it asks of the device goes into this queue, behind what was asked of the
  /// current one before.
  void run(const std::function<void()>& work) const;

  /// Waits until the queue is empty.
  void wait() const;

 private:
  struct Stream;
  std::unique_ptr<Stream> stream_;  // null: CPU
};

}  // namespace libvar
