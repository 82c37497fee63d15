#include "fiber.h"

#include <sys/mman.h>

#include <cstdint>
#include <cstdlib>
#include <new>

#if !defined(__x86_64__)
#include <ucontext.h>
#endif

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif

#if defined(__x86_64__)
// void libvar_simt_switch(void** save, void* load): keeps the registers that a callee must keep,
// and the stack pointer. swapcontext does the same with two system calls, 15 times slower.
extern "C" void libvar_simt_switch(void** save, void* load);
asm(R"(
.text
.p2align 4
.globl libvar_simt_switch
.type libvar_simt_switch, @function
libvar_simt_switch:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.size libvar_simt_switch, .-libvar_simt_switch
)");
#endif

namespace simt {

struct Fiber::Impl {
  char* stack = nullptr;
  std::size_t stack_bytes = 0;
  std::size_t stagger = 0;
  Entry entry = nullptr;
  void* argument = nullptr;
#if defined(__x86_64__)
  void* own = nullptr;
  void* caller = nullptr;
#else
  ucontext_t own;
  ucontext_t caller;
#endif
#if defined(__SANITIZE_ADDRESS__)
  const void* caller_stack = nullptr;
  std::size_t caller_stack_bytes = 0;
#endif

  void arrived_inside() {
#if defined(__SANITIZE_ADDRESS__)
    __sanitizer_finish_switch_fiber(nullptr, &caller_stack, &caller_stack_bytes);
#endif
  }

  void switch_out() {
#if defined(__x86_64__)
    libvar_simt_switch(&own, caller);
#else
    swapcontext(&own, &caller);
#endif
  }
};

namespace {

// The fiber that is being started: a fresh stack has no room for arguments yet.
Fiber* starting = nullptr;

}  // namespace

Fiber::Fiber(std::size_t stack_bytes, std::size_t stagger) : impl_(std::make_unique<Impl>()) {
  void* memory = mmap(nullptr, stack_bytes, PROT_READ | PROT_WRITE,
                      MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (memory == MAP_FAILED) throw std::bad_alloc();
  mprotect(memory, 4096, PROT_NONE);  // an overflow faults
  impl_->stack = static_cast<char*>(memory);
  impl_->stack_bytes = stack_bytes;
  impl_->stagger = stagger;
}

Fiber::~Fiber() {
#if defined(__SANITIZE_ADDRESS__)
  __asan_unpoison_memory_region(impl_->stack, impl_->stack_bytes);
#endif
  munmap(impl_->stack, impl_->stack_bytes);
}

// Only reached through the first switch to a fiber; never returns, because there is nothing to
// return to.
extern "C" void libvar_simt_fiber_main(Fiber::Entry entry, void* argument, Fiber* fiber) {
  entry(argument);
  fiber->suspend();
  std::abort();
}

void Fiber::reset(Entry entry, void* argument) {
  impl_->entry = entry;
  impl_->argument = argument;
#if defined(__SANITIZE_ADDRESS__)
  // A fiber that was dropped half way left its frames' red zones behind.
  __asan_unpoison_memory_region(impl_->stack, impl_->stack_bytes);
#endif
  const auto trampoline = +[]() {
    Fiber* fiber = starting;
    fiber->impl_->arrived_inside();
    libvar_simt_fiber_main(fiber->impl_->entry, fiber->impl_->argument, fiber);
  };
#if defined(__x86_64__)
  std::uintptr_t top =
      reinterpret_cast<std::uintptr_t>(impl_->stack) + impl_->stack_bytes - impl_->stagger;
  top &= ~std::uintptr_t{15};
  auto* slots = reinterpret_cast<std::uintptr_t*>(top);
  *--slots =
      0;  // where a return address would be: ends backtraces, and aligns the stack as after a call
  *--slots = reinterpret_cast<std::uintptr_t>(+trampoline);
  for (int i = 0; i < 6; ++i) *--slots = 0;
  impl_->own = slots;
#else
  getcontext(&impl_->own);
  impl_->own.uc_stack.ss_sp = impl_->stack + 4096;
  impl_->own.uc_stack.ss_size = (impl_->stack_bytes - 4096 - impl_->stagger) & ~std::size_t{15};
  impl_->own.uc_link = nullptr;
  makecontext(&impl_->own, trampoline, 0);
#endif
}

void Fiber::resume() {
  starting = this;
#if defined(__SANITIZE_ADDRESS__)
  void* own_fake_stack = nullptr;
  __sanitizer_start_switch_fiber(&own_fake_stack, impl_->stack, impl_->stack_bytes);
#endif
#if defined(__x86_64__)
  libvar_simt_switch(&impl_->caller, impl_->own);
#else
  swapcontext(&impl_->caller, &impl_->own);
#endif
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(own_fake_stack, nullptr, nullptr);
#endif
}

void Fiber::suspend() {
#if defined(__SANITIZE_ADDRESS__)
  void* own_fake_stack = nullptr;
  __sanitizer_start_switch_fiber(&own_fake_stack, impl_->caller_stack, impl_->caller_stack_bytes);
#endif
  impl_->switch_out();
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(own_fake_stack, &impl_->caller_stack, &impl_->caller_stack_bytes);
#endif
}

}  // namespace simt
