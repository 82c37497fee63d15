#pragma once

#include <c10/util/Exception.h>
#include <c10/util/StringUtil.h>

#include <new>
#include <string>
#include <string_view>

#include "libvar/error.h"

namespace libvar {

/// Runs `body`; out of memory, host or device, becomes a ResourceError that names `what`.
template <typename Body>
auto with_resource_errors(const std::string& what, Body&& body) {
  try {
    return body();
  } catch (const c10::OutOfMemoryError&) {
    throw ResourceError(c10::str(what, ": out of device memory"));
  } catch (const c10::Error& error) {
    // The CPU allocator throws the base class; its words are all that tells.
    if (std::string_view(error.what_without_backtrace()).find("can't allocate memory") ==
        std::string_view::npos)
      throw;
    throw ResourceError(c10::str(what, ": out of memory"));
  } catch (const std::bad_alloc&) {
    throw ResourceError(c10::str(what, ": out of memory"));
  }
}

}  // namespace libvar
