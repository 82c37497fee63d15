#pragma once

namespace libvar {

/// How many threads a program should compute with on this CPU: for at::set_num_threads(), which the
/// library leaves to the program.
///
/// Physical cores (SMT siblings count once) among the processors that the calling thread may run
/// on, at most the CPU quota of the process's control group and of those above it, rounded down.
/// What can't be read sets no limit. A thread that OpenMP has bound (OMP_PROC_BIND, OMP_PLACES) may
/// run on its own place only: there the answer is about that place.
///
/// @return  at least 1
/// Cost: some dozen files of /proc and /sys, read at each call.
int recommended_threads();

}  // namespace libvar
