#include <algorithm>
#include <filesystem>
#include <system_error>
#include <utility>

#include "archive/archive.h"
#include "families/sink_dimensions.h"
#include "libvar/convert.h"

namespace libvar {
namespace {

/// The tensors in the order in which the file holds them.
std::vector<TensorSource> mapped_sources(const Archive& archive) {
  std::vector<std::pair<const void*, std::string>> order;
  for (const auto& [name, tensor] : archive.tensors())
    order.emplace_back(tensor.const_data_ptr(), name);
  std::sort(order.begin(), order.end());
  std::vector<TensorSource> out;
  for (const auto& [address, name] : order) {
    const at::Tensor& tensor = archive.tensors().at(name);
    out.push_back({name, tensor.sizes().vec(), tensor.scalar_type(), [&tensor] { return tensor; }});
  }
  return out;
}

}  // namespace

void save_sink_dimensions(const std::filesystem::path& archive,
                          const std::vector<std::int64_t>& dims, const std::string& source,
                          const ProgressCallback& on_progress) {
  const Archive old = Archive::open(archive);
  check_sink_dimensions(dims, read_model_config(old).decoder.hidden_size);
  CheckpointFiles files = old.files();
  std::string& manifest = files.at("libvar.json");
  manifest = replace_sink_dimensions(manifest, {dims, source});
  // Behind a symbolic link the file is replaced, not the link.
  write_archive(std::filesystem::canonical(archive), mapped_sources(old), files, on_progress);
}

}  // namespace libvar
