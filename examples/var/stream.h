#pragma once

#include <string>

#include "libvar/model.h"
#include "libvar/request.h"
#include "libvar/session.h"

namespace var_command {

enum class Turn { kFirst, kFurther };

/// Answers and prints the text as it comes, with a line break at its end; Ctrl-C ends the answer.
libvar::Answer ask_streaming(libvar::Session& session, const libvar::Request& request, Turn turn);

/// Answers and prints nothing; Ctrl-C ends the answer.
libvar::Answer ask_quietly(libvar::Session& session, const libvar::Request& request);

/// One line on a model or on an answer's cost.
std::string describe(const libvar::Model& model);
std::string describe(const libvar::Answer& answer);

}  // namespace var_command
