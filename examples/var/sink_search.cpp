#include "sink_search.h"

#include "interrupt.h"
#include "progress_bar.h"

namespace var_command {

std::string no_sink_dimensions(const std::string& model_path, const std::string& consequence) {
  return model_path + ": no sink dimensions are known for this model, VAR can't act" + consequence +
         "; var sinks discover " + model_path + " --save finds and stores them";
}

libvar::SinkDiscovery search_sink_dimensions(const libvar::Model& model,
                                             const PromptFlags& prompt) {
  libvar::Request request;
  prompt.fill(request);
  request.images.assign(prompt.images.begin(), prompt.images.end());
  const InterruptScope interrupt;
  ProgressBar bar("searching", ProgressBar::Unit::kPieces);
  return libvar::discover_sink_dimensions(model, request, libvar::VarParams().tau,
                                          [&bar](std::int64_t done, std::int64_t total) {
                                            InterruptScope::check();
                                            bar.update(done, total);
                                          });
}

}  // namespace var_command
