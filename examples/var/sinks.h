#pragma once

#include "command.h"

namespace var_command {

/// Each adds a subcommand of `var sinks`.
void add_sinks_show(CLI::App& sinks, Action& action);
void add_sinks_heads(CLI::App& sinks, Action& action);
void add_sinks_contribution(CLI::App& sinks, Action& action);
void add_sinks_ablate(CLI::App& sinks, Action& action);
void add_sinks_background(CLI::App& sinks, Action& action);
void add_sinks_knockout(CLI::App& sinks, Action& action);
void add_sinks_report(CLI::App& sinks, Action& action);

}  // namespace var_command
