#pragma once

#include <memory>
#include <random>
#include <string>
#include <vector>

#include "libvar/batch_session.h"
#include "libvar/model.h"
#include "libvar/request.h"

namespace libvar::testing {

struct SoakModel {
  std::string name;
  std::shared_ptr<const Model> model;
};

/// The demo model and four tiny ones of the goldens, one of each family.
/// @param device  "cpu", "cuda"
/// @param dtype   "fp32", "bf16", "fp16"
std::vector<SoakModel> load_soak_models(const std::string& device, const std::string& dtype);

/// Questions about 0, 1 and 2 pictures with lengths, settings of VAR and of drawing that differ;
/// a seed gives the same ones everywhere.
class RequestMaker {
 public:
  /// @param draws  whether some answers are drawn; the others are greedy
  RequestMaker(std::uint32_t seed, bool draws) : random_(seed), draws_(draws) {}

  Request request(const Model& model);
  /// Batches, kept prefixes and chunks of prompts in several sizes.
  BatchOptions options();
  /// The longest question about the largest pictures and a few others: the same ones at every call.
  static std::vector<Request> fixed(const Model& model);

 private:
  std::int64_t pick(std::int64_t count);  // in [0, count)

  bool one_in(std::int64_t count) { return pick(count) == 0; }

  void set_images(Request& request);
  VarParams var(const Model& model);

  std::mt19937 random_;
  bool draws_;
  std::vector<ImageSource> last_images_;
};

}  // namespace libvar::testing
