// A model with int8 weights against the same model with the weights multiplied out.

#include <ATen/TensorOperators.h>

#include <memory>
#include <string>
#include <vector>

#include "archive/archive.h"
#include "catch.h"
#include "golden_fixture.h"
#include "libvar/convert.h"
#include "libvar/model.h"
#include "libvar/session.h"
#include "temporary_folder.h"
#include "unit/model/golden_run.h"

using namespace libvar;
using namespace libvar::testing;

namespace {

std::shared_ptr<const Model> load(const std::filesystem::path& path, const std::string& dtype) {
  LoadOptions options;
  options.device = "cpu";
  options.dtype = dtype;
  return Model::load(path, options);
}

/// The archive with its int8 weights as float32 numbers: weight * scale, rounded once.
void write_multiplied_out(const Archive& quantized, const std::filesystem::path& path) {
  std::vector<TensorSource> sources;
  for (const auto& [name, tensor] : quantized.tensors()) {
    if (name.ends_with("_scale")) continue;
    at::Tensor value = tensor;
    if (tensor.scalar_type() == at::kChar) {
      const at::Tensor& scale = quantized.tensors().at(name + "_scale");
      value = (tensor.to(at::kDouble) * scale.to(at::kDouble).unsqueeze(1)).to(at::kFloat);
    }
    sources.push_back({name, value.sizes().vec(), at::kFloat, [value] { return value; }});
  }
  ArchiveManifest manifest = quantized.manifest();
  manifest.quantization.clear();
  CheckpointFiles files = quantized.files();
  files["libvar.json"] = to_json_text(manifest);
  write_archive(path, sources, files);
}

/// Answer with logits of 24 tokens about a picture.
Answer ask(const std::filesystem::path& archive, const std::string& dtype, const VarParams& var) {
  Request request;
  request.images = {golden_folder() / "images/landscape.png"};
  request.question = "Where is the red cat?";
  request.generation.max_new_tokens = 24;
  request.return_logits = true;
  request.var = var;
  return Session(load(archive, dtype)).ask(request);
}

}  // namespace

TEST_CASE("int8 weights give the logits of the weights multiplied out", "[golden][quantize]") {
  const double bar = golden_manifest().at("logits_bar");
  for (const char* name : {"mha", "gqa"}) {
    const TemporaryFolder folder;
    const nlohmann::json& golden = golden_case(name);
    write_golden_checkpoint(folder / "checkpoint", golden);
    ConvertOptions options;
    options.dtype = "fp32";
    options.quantize = "int8";
    options.sink_dims = golden.at("sink_dims").get<std::vector<std::int64_t>>();
    convert_checkpoint(folder / "checkpoint", folder / "int8.pt", options);
    write_multiplied_out(Archive::open(folder / "int8.pt"), folder / "float.pt");
    for (const nlohmann::json& run : golden.at("runs")) {
      const VarParams var = var_params(run.at("var"));
      CAPTURE(name, run.at("name").get<std::string>());
      const Answer answer = ask(folder / "int8.pt", "fp32", var);
      const Answer expected = ask(folder / "float.pt", "fp32", var);
      CHECK(answer.tokens == expected.tokens);
      CHECK(answer.var.selected_rows == expected.var.selected_rows);
      CHECK(relative_error(answer.logits, expected.logits) <= bar);
      // It is another model than the one that was not quantized.
      const Answer original = ask(golden_archive(name), "fp32", var);
      CHECK(relative_error(answer.logits.narrow(0, 0, 1), original.logits.narrow(0, 0, 1)) > 1e-3);
      // The half types compute with the same weights.
      for (const char* dtype : {"bf16", "fp16"}) {
        const Answer half = ask(folder / "int8.pt", dtype, var);
        CAPTURE(dtype);
        CHECK(relative_error(half.logits.narrow(0, 0, 1), expected.logits.narrow(0, 0, 1)) <= 0.05);
      }
    }
  }
}
