#pragma once

namespace libvar {

/// "major.minor.patch" of the library that is linked.
const char* version();

}  // namespace libvar
