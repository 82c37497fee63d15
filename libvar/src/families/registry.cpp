#include <array>
#include <nlohmann/json.hpp>

#include "families/families.h"
#include "families/json_fields.h"
#include "libvar/error.h"

namespace libvar {

std::vector<CanonicalTensor> Family::canonical_tensors(const std::string& name,
                                                       const ModelConfig&) const {
  const auto canonical = canonical_name(name);
  if (!canonical) return {};
  return {{*canonical}};
}

const Family& find_family(const CheckpointFiles& files) {
  const std::array<const Family*, 4> families{&llava_family(), &vila_family(), &qwen2_vl_family(),
                                              &internvl_family()};
  const auto config = files.find("config.json");
  if (config == files.end()) throw ArchiveError("config.json is missing");
  const nlohmann::json json = JsonFields::parse(config->second, "config.json");
  std::string known;
  for (const Family* family : families) {
    if (family->recognises(json)) return *family;
    known += (known.empty() ? "" : ", ") + family->name();
  }
  JsonFields(json, "config.json")
      .fail("model_type", "one of the supported families (" + known + ")");
}

}  // namespace libvar
