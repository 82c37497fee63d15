// libc10 and Debian's libsentencepiece both export a variable FLAGS_minloglevel: an int in one, an
// absl::Flag of 32 bytes in the other. The dynamic linker gives both the same storage, and where
// that is libc10's int, sentencepiece's static initialiser overwrites what lies behind it: the flag
// that turns failed checks (out of memory among them) from exceptions into abort(), and a mutex.
//
// So this library, which programs list before libc10, exports storage that is large enough for
// both. The int shares its bytes with the flag's virtual table pointer, which sentencepiece never
// reads: it is put back to c10's default once sentencepiece has been initialised.

#include <cstring>

// NOLINTBEGIN(readability-identifier-naming): the names are of the two libraries.
extern bool FLAGS_caffe2_use_fatal_for_enforce;  // c10/util/Logging.cpp, default false

// Unmangled, because it is a variable of the global namespace.
alignas(16) extern unsigned char FLAGS_minloglevel[64];
alignas(16) unsigned char FLAGS_minloglevel[64] = {};

// NOLINTEND(readability-identifier-naming)

namespace {

// Runs after the initialisers of sentencepiece, on which this library depends.
[[maybe_unused]] const bool restored = [] {
  std::memset(FLAGS_minloglevel, 0, sizeof(int));
  // Where a program loads libc10 before this library, libc10's storage has won and was damaged.
  FLAGS_caffe2_use_fatal_for_enforce = false;
  return true;
}();

}  // namespace
