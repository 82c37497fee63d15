#include "libvar/version.h"

namespace libvar {

const char* version() {
  return LIBVAR_VERSION;
}

}  // namespace libvar
