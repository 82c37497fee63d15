#include "load/gpu_name.h"

namespace libvar::bench {

std::string gpu_name() {
  return "";
}

}  // namespace libvar::bench
