#include "libvar/convert.h"

#include <ATen/ops/arange.h>
#include <ATen/ops/zeros.h>
#include <sys/resource.h>

#include "archive/archive.h"
#include "catch.h"
#include "golden_fixture.h"
#include "libvar/error.h"
#include "temporary_folder.h"
#include "unit/storage/tiny_checkpoint.h"

using namespace libvar;
using namespace libvar::testing;
using Catch::Contains;

namespace {

/// A tiny checkpoint in a folder and the archive beside it.
struct Job {
  TemporaryFolder folder;
  TinyCheckpoint checkpoint;
  ConvertOptions options;

  explicit Job(at::ScalarType dtype = at::kFloat) : checkpoint(dtype) {}

  std::filesystem::path in() const { return folder / "checkpoint"; }

  std::filesystem::path out() const { return folder / "out.pt"; }

  Archive run(int shards = 1) {
    checkpoint.write(in(), shards);
    convert_checkpoint(in(), out(), options);
    return Archive::open(out());
  }

  template <typename Error = ArchiveError>
  std::string error() {
    const std::string message =
        message_of<Error>([&] { convert_checkpoint(in(), out(), options); });
    CHECK_FALSE(std::filesystem::exists(out()));
    return message;
  }

  /// The error of the checkpoint as it stands.
  std::string written_error(int shards = 1) {
    checkpoint.write(in(), shards);
    return error();
  }
};

}  // namespace

TEST_CASE("convert writes every tensor and file of a checkpoint", "[convert]") {
  for (const int shards : {1, 3}) {
    Job job;
    job.checkpoint.tensors["language_model.model.layers.0.self_attn.rotary_emb.inv_freq"] =
        at::zeros({2});
    job.checkpoint.tensors["vision_tower.vision_model.embeddings.position_ids"] =
        at::arange(5, at::kLong);
    const Archive archive = job.run(shards);
    REQUIRE(archive.tensors().size() == job.checkpoint.tensors.size() - 2);
    for (const auto& [name, tensor] : archive.tensors()) {
      INFO(name);
      REQUIRE(tensor.equal(job.checkpoint.tensors.at(name)));
    }
    for (const char* name : {"config.json", "generation_config.json", "preprocessor_config.json",
                             "tokenizer.model", "tokenizer.json", "tokenizer_config.json",
                             "special_tokens_map.json", "added_tokens.json"}) {
      REQUIRE(archive.files().at(name) == read_bytes(job.in() / name));
    }
    REQUIRE(archive.manifest().dtype == "float32");
    REQUIRE(archive.manifest().sink_dimensions.dims.empty());
    REQUIRE(archive.manifest().sink_dimensions.source == "not known");
    verify_archive(job.out());
  }
}

TEST_CASE("convert stores the type that is asked for", "[convert]") {
  const std::map<std::string, at::ScalarType> types{
      {"fp32", at::kFloat}, {"bf16", at::kBFloat16}, {"fp16", at::kHalf}};
  for (const at::ScalarType from : {at::kFloat, at::kHalf, at::kBFloat16}) {
    for (const auto& [name, to] : types) {
      Job job(from);
      job.options.dtype = name;
      const Archive archive = job.run();
      for (const auto& [tensor_name, tensor] : archive.tensors()) {
        REQUIRE(tensor.scalar_type() == to);
        REQUIRE(tensor.equal(job.checkpoint.tensors.at(tensor_name).to(to)));
      }
    }
    Job job(from);  // auto
    REQUIRE(job.run().tensors().begin()->second.scalar_type() == from);
  }
}

TEST_CASE("a value beyond float16 is an error that names the tensor", "[convert]") {
  Job job;
  job.options.dtype = "fp16";
  at::Tensor& tensor = job.checkpoint.tensors["language_model.model.norm.weight"];
  tensor[3].fill_(65519.0);  // rounds to 65504
  job.run();
  std::filesystem::remove_all(job.in());
  std::filesystem::remove(job.out());
  tensor[3].fill_(-70000.0);
  CHECK_THAT(job.written_error(),
             Contains("tensor language_model.model.norm.weight: its largest magnitude 70000.0") &&
                 Contains("does not fit float16"));
  job.options.dtype = "bf16";
  convert_checkpoint(job.in(), job.out(), job.options);
}

TEST_CASE("tied embeddings need no head and keep none", "[convert]") {
  Job job;
  job.checkpoint.config["tie_word_embeddings"] = true;
  REQUIRE(job.run().tensors().count("language_model.lm_head.weight") == 0);
  Job without;
  without.checkpoint.config["tie_word_embeddings"] = true;
  without.checkpoint.tensors.erase("language_model.lm_head.weight");
  without.run();
}

TEST_CASE("convert stores sink dimensions and the first layer that are given", "[convert]") {
  Job job;
  job.options.sink_dims = {15, 0};
  job.options.first_layer = 1;
  const ArchiveManifest manifest = job.run().manifest();
  REQUIRE(manifest.sink_dimensions.dims == std::vector<std::int64_t>{15, 0});
  CHECK_THAT(manifest.sink_dimensions.source, Contains("given"));
  REQUIRE(manifest.var_defaults.first_layer == 1);
  std::filesystem::remove(job.out());

  const auto error = [&](std::vector<std::int64_t> dims) {
    job.options.sink_dims = std::move(dims);
    return job.error<ConfigError>();
  };
  CHECK_THAT(error({16}),
             Contains("sink_dims: expected dimensions in [0, 16), the hidden size, found 16"));
  CHECK_THAT(error({-1}), Contains("found -1"));
  CHECK_THAT(error({}), Contains("expected 1 to 8 different dimensions, found 0"));
  CHECK_THAT(error({1, 1}), Contains("found 2 with repetitions"));
  CHECK_THAT(error({0, 1, 2, 3, 4, 5, 6, 7, 8}), Contains("found 9"));
  job.options.sink_dims.reset();
  job.options.first_layer = -1;
  CHECK_THAT(job.error<ConfigError>(), Contains("first_layer: expected 0 or more, found -1"));
  job.options.first_layer.reset();
  job.options.dtype = "int8";
  CHECK_THAT(job.error<ConfigError>(),
             Contains("dtype: expected auto, fp32, bf16 or fp16, found int8"));
}

TEST_CASE("info tells what an archive says of itself", "[convert]") {
  Job job(at::kBFloat16);
  job.options.sink_dims = {3};
  job.run();
  const ArchiveInfo info = read_archive_info(job.out());
  std::int64_t parameters = 0;
  for (const auto& [name, tensor] : job.checkpoint.tensors) parameters += tensor.numel();
  REQUIRE((info.format_version == 1 && info.family == "llava" && info.dtype == "bfloat16"));
  REQUIRE(info.num_parameters == parameters);
  REQUIRE(info.file_bytes == static_cast<std::int64_t>(std::filesystem::file_size(job.out())));
  REQUIRE((info.hidden_size == 16 && info.intermediate_size == 24 && info.num_layers == 2 &&
           info.num_heads == 4));
  REQUIRE((info.num_kv_heads == 2 && info.head_dim == 4 && info.vocab_size == 520 &&
           info.context_length == 64));
  REQUIRE((info.image_size == 28 && info.patch_size == 14 && info.visual_tokens == 4));
  REQUIRE((info.prompt_style == "llava_hf" && info.image_mode == "crop"));
  REQUIRE((info.sink_dims == std::vector<std::int64_t>{3} && info.var_defaults == VarParams{}));
}

TEST_CASE("a checkpoint that is incomplete is refused in one clear line each", "[convert]") {
  const std::string norm = "language_model.model.layers.1.input_layernorm.weight";
  {
    Job job;
    CHECK_THAT(job.error(), Contains("checkpoint: there is no such folder"));
    write_bytes(job.in(), "a file");
    CHECK_THAT(job.error(),
               Contains("expected the folder of a Hugging Face checkpoint, found a file"));
  }
  for (const char* file : {"config.json", "preprocessor_config.json", "tokenizer.model"}) {
    Job job;
    job.checkpoint.write(job.in());
    std::filesystem::remove(job.in() / file);
    CHECK_THAT(job.error(), Contains("checkpoint: " + std::string(file) + " is missing"));
  }
  {
    Job job;
    job.checkpoint.tensors.erase(norm);
    CHECK_THAT(job.written_error(), Contains("checkpoint: tensor " + norm + " is missing"));
  }
  {
    Job job;
    job.checkpoint.tensors[norm] = at::zeros({17});
    CHECK_THAT(job.written_error(),
               Contains("model.safetensors: tensor " + norm + ": expected shape [16], found [17]"));
  }
  {
    Job job;
    job.checkpoint.tensors[norm] = at::arange(16, at::kLong);
    CHECK_THAT(job.written_error(),
               Contains("tensor " + norm + ": expected dtype F32, F16 or BF16, found I64"));
  }
  {
    Job job;
    job.checkpoint.tensors["model.layers.1.input_layernorm.weight"] = at::zeros({16});
    CHECK_THAT(job.written_error(), Contains("both are " + norm));
  }
  {
    Job job;
    job.checkpoint.write(job.in(), 3);
    std::filesystem::remove(job.in() / "model-00002-of-00003.safetensors");
    CHECK_THAT(
        job.error(),
        Contains("model-00002-of-00003.safetensors: this shard of the checkpoint is missing"));
  }
  {
    Job job;
    job.checkpoint.config["model_type"] = "blip";
    CHECK_THAT(
        job.written_error(),
        Contains("checkpoint: config.json: model_type: expected one of the supported families"));
  }
  {
    Job job;
    job.checkpoint.write(job.in());
    std::filesystem::rename(job.in() / "model.safetensors", job.in() / "pytorch_model.bin");
    CHECK_THAT(job.error(), Contains("holds pickled weights only (pytorch_model.bin)"));
  }
}

TEST_CASE("a tokenizer that does not fit the vocabulary is refused", "[convert]") {
  Job job;
  job.checkpoint.config["text_config"]["vocab_size"] = 513;
  for (const char* name :
       {"language_model.model.embed_tokens.weight", "language_model.lm_head.weight"}) {
    job.checkpoint.tensors[name] = at::zeros({513, 16});
  }
  CHECK_THAT(job.written_error(),
             Contains("the tokenizer does not fit the vocabulary: it gives ids up to 513, "
                      "config.json: vocab_size is 513"));
  Job other;
  other.checkpoint.config["image_token_index"] = 510;
  CHECK_THAT(other.written_error(), Contains("<image> is 512 in the one, 510 in the other"));
  Job outside;
  outside.checkpoint.config["image_token_index"] = 520;
  CHECK_THAT(outside.written_error(),
             Contains("image_token_index: expected an integer in [0, 519], found 520"));
}

TEST_CASE("convert does not overwrite its input, and leaves nothing on a full disk", "[convert]") {
  Job job;
  job.checkpoint.write(job.in());
  CHECK_THAT(message_of<ArchiveError>(
                 [&] { convert_checkpoint(job.in(), job.in() / "model.safetensors"); }),
             Contains("is a file of the checkpoint itself"));
  CHECK_THAT(
      message_of<ArchiveError>([&] { convert_checkpoint(job.in(), job.folder / "no/out.pt"); }),
      Contains("there is no directory"));
  rlimit before{};
  REQUIRE(getrlimit(RLIMIT_FSIZE, &before) == 0);
  rlimit limit = before;
  limit.rlim_cur = 10000;
  REQUIRE(setrlimit(RLIMIT_FSIZE, &limit) == 0);
  const std::string message = job.error<ResourceError>();
  REQUIRE(setrlimit(RLIMIT_FSIZE, &before) == 0);
  CHECK_THAT(message, Contains("out.pt: can't be written past 10000 bytes: File too large"));
  std::int64_t entries = 0;
  for (const auto& entry : std::filesystem::directory_iterator(job.folder.path()))
    entries += entry.exists() ? 1 : 0;
  REQUIRE(entries == 1);  // the checkpoint
}
