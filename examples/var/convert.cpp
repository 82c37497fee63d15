#include "libvar/convert.h"

#include <cstdio>
#include <memory>

#include "command.h"
#include "flags.h"
#include "interrupt.h"
#include "numbers.h"
#include "progress_bar.h"

namespace var_command {
namespace {

struct ConvertFlags {
  CommonFlags common;
  std::string checkpoint, out, quantize;
  std::vector<std::int64_t> sink_dims;
  std::optional<std::int64_t> first_layer;
};

int convert(const ConvertFlags& flags) {
  flags.common.apply();
  {
    const InterruptScope interrupt;
    ProgressBar bar("converting");
    libvar::ConvertOptions options;
    options.dtype = flags.common.dtype;
    options.quantize = flags.quantize;
    if (!flags.sink_dims.empty()) options.sink_dims = flags.sink_dims;
    options.first_layer = flags.first_layer;
    options.on_progress = [&bar](std::int64_t done, std::int64_t total) {
      InterruptScope::check();
      bar.update(done, total);
    };
    libvar::convert_checkpoint(flags.checkpoint, flags.out, options);
  }
  const libvar::ArchiveInfo info = libvar::read_archive_info(flags.out);
  std::printf("%s: %s, %s parameters, %s, %s\n", flags.out.c_str(), info.family.c_str(),
              grouped(info.num_parameters).c_str(), dtype_text(info).c_str(),
              bytes_text(info.file_bytes).c_str());
  if (info.sink_dims.empty()) {
    flags.common.warn(std::string() +
                      "no sink dimensions are known for this language model, so VAR can't act; "
                      "give --sink-dims, or find "
                      "them: var sinks discover " +
                      flags.out + " --save");
  }
  return kDone;
}

}  // namespace

void add_convert(CLI::App& app, Action& action) {
  const auto flags = std::make_shared<ConvertFlags>();
  CLI::App* command =
      app.add_subcommand("convert", "Write an archive from a Hugging Face checkpoint");
  command
      ->add_option("HF_DIR", flags->checkpoint,
                   "Checkpoint folder with config.json and safetensors files")
      ->required();
  command->add_option("OUT.pt", flags->out, "Archive to write; appears when it is complete")
      ->required();
  command
      ->add_option("--sink-dims", flags->sink_dims,
                   "Sink dimensions of the language model; by default those that are known for it")
      ->delimiter(',')
      ->type_name("A,B,...");
  command
      ->add_option("--first-layer", flags->first_layer,
                   "Stored as the model's first layer that VAR changes")
      ->type_name("N");
  command
      ->add_option(
          "--quantize", flags->quantize,
          "Store the linear maps of the decoder's layers in int8, with a scale for each row")
      ->check(CLI::IsMember({"int8"}));
  flags->common.add(*command, "Type of the weights; auto is the checkpoint's");
  command->footer("Example:\n  var convert llava-1.5-7b-hf llava.pt --dtype bf16");
  command->callback([flags, &action] { action = [flags] { return convert(*flags); }; });
}

}  // namespace var_command
