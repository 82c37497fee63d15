#pragma once

// A fiber: a function with a stack of its own that gives the processor back by itself and is
// resumed where it left off.

#include <cstddef>
#include <memory>

namespace simt {

class Fiber {
 public:
  using Entry = void (*)(void* argument);

  /// @param stack_bytes  usable stack
  /// @param stagger      bytes by which the top of the stack is lowered, so that the fibers' hot
  /// lines don't share cache sets
  Fiber(std::size_t stack_bytes, std::size_t stagger);
  ~Fiber();
  Fiber(const Fiber&) = delete;
  Fiber& operator=(const Fiber&) = delete;

  /// Makes the next resume() begin entry(argument) on a fresh stack. What the fiber ran before is
  /// dropped as it stands, nothing is unwound.
  void reset(Entry entry, void* argument);

  /// Runs the fiber until it suspends or its entry returns. Called from outside of all fibers.
  void resume();

  /// Goes back to the caller of resume(). Called from inside the fiber.
  void suspend();

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace simt
