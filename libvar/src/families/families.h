#pragma once

#include "families/family.h"

namespace libvar {

/// LLaVA-1.5: the Hugging Face layouts A, B and C, and the original one.
const Family& llava_family();

/// VILA-1.5, a folder for each part. (VILA v1 is a LLaVA in the original layout.)
const Family& vila_family();

/// Qwen2-VL: as published, and as transformers 5 writes it.
const Family& qwen2_vl_family();

/// InternVL2: InternVLChatModel as published, and transformers' own `internvl`.
const Family& internvl_family();

}  // namespace libvar
