#pragma once

#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "libvar/model.h"
#include "libvar/request.h"

namespace libvar {

/// What an entry of a report is to hold.
struct ReportOptions {
  std::string name;  ///< of the entry, as a rule the picture's file name
  /// [first, last] layers whose heads can be looked at one by one; each takes heads x rows x visual
  /// tokens bytes and more before compression. {0, -1}: all layers.
  std::pair<std::int64_t, std::int64_t> head_layers{0, -1};
};

/// A question answered without VAR and with it, as one entry of a report: the text of a JSON
/// object.
///
/// It holds the pictures (JPEG, at most 1280 pixels a side), the words of question and answers, phi
/// and, for every word, layer and head, the attention to the visual tokens: what Inspection has of
/// the run without VAR, and of the run with it behind the redistribution. Attention is stored as
/// round(255 sqrt(a / m)), m the largest of its row: 0.4 % of m at most from the exact value.
/// @param request  var.enabled must be true
/// @throws         as inspect; ConfigError where VAR is off, and for layers that there are not
std::string report_entry(const std::shared_ptr<const Model>& model, const Request& request,
                         const ReportOptions& options = {});

/// The page of some entries: one HTML file that needs no other and no network.
/// @throws InputError  there is no entry, or one is not of report_entry
std::string report_page(const std::string& title, const std::vector<std::string>& entries);

}  // namespace libvar
