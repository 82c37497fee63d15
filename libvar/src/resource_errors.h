#pragma once

#include <c10/util/Exception.h>
#include <c10/util/StringUtil.h>

#include <new>
#include <string>
#include <string_view>

#include "libvar/error.h"

namespace libvar {

/// Runs `body`; out of memory, host or device, becomes a ResourceError that names `what`, any other
/// error of LibTorch an Error without the stack trace.
template <typename Body>
auto with_resource_errors(const std::string& what, Body&& body) {
  try {
    return body();
  } catch (const c10::OutOfMemoryError&) {
    throw ResourceError(c10::str(what, ": out of device memory"));
  } catch (const c10::Error& error) {
    // The CPU allocator, cuBLAS and the CUDA runtime throw the base class; words are all that
    // tells.
    const std::string_view text = error.what_without_backtrace();
    const auto says = [&](std::string_view words) { return text.find(words) != text.npos; };
    if (says("can't allocate memory")) throw ResourceError(c10::str(what, ": out of memory"));
    if (says("CUDA error: out of memory") || says("ALLOC_FAILED"))
      throw ResourceError(c10::str(what, ": out of device memory"));
    throw Error(c10::str(what, ": ", text));
  } catch (const std::bad_alloc&) {
    throw ResourceError(c10::str(what, ": out of memory"));
  }
}

}  // namespace libvar
