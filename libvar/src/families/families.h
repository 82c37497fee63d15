#pragma once

#include "families/family.h"

namespace libvar {

/// LLaVA-1.5: the Hugging Face layouts A, B and C, and the original one.
const Family& llava_family();

}  // namespace libvar
