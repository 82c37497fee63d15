#include <cstdio>
#include <memory>
#include <nlohmann/json.hpp>

#include "answer_json.h"
#include "command.h"
#include "flags.h"
#include "interrupt.h"
#include "libvar/convert.h"
#include "numbers.h"
#include "progress_bar.h"

namespace var_command {
namespace {

struct InfoFlags {
  CommonFlags common;
  std::string model;
  bool json = false, verify = false;
};

nlohmann::ordered_json info_json(const libvar::ArchiveInfo& info, bool verified) {
  nlohmann::ordered_json out = {{"format_version", info.format_version},
                                {"content_id", info.content_id},
                                {"family", info.family},
                                {"dtype", info.dtype},
                                {"quantization", info.quantization},
                                {"num_parameters", info.num_parameters},
                                {"file_bytes", info.file_bytes},
                                {"hidden_size", info.hidden_size},
                                {"intermediate_size", info.intermediate_size},
                                {"num_layers", info.num_layers},
                                {"num_heads", info.num_heads},
                                {"num_kv_heads", info.num_kv_heads},
                                {"head_dim", info.head_dim},
                                {"vocab_size", info.vocab_size},
                                {"context_length", info.context_length},
                                {"image_size", info.image_size},
                                {"patch_size", info.patch_size},
                                {"visual_tokens", info.visual_tokens},
                                {"prompt_style", info.prompt_style},
                                {"image_mode", info.image_mode},
                                {"sink_dims", info.sink_dims},
                                {"sink_dims_source", info.sink_dims_source},
                                {"var_defaults", params_json(info.var_defaults)}};
  if (verified) out["verified"] = true;
  return out;
}

void print_row(const char* name, const std::string& value) {
  std::printf("%-16s%s\n", name, value.c_str());
}

void print_table(const libvar::ArchiveInfo& info, const std::string& path, bool verified) {
  const auto text = [](std::int64_t value) { return std::to_string(value); };
  const libvar::VarParams& var = info.var_defaults;
  print_row("archive",
            path + ", " + bytes_text(info.file_bytes) + ", format " + text(info.format_version));
  print_row("family", info.family);
  print_row("weights", grouped(info.num_parameters) + " parameters, " + dtype_text(info));
  print_row("decoder", text(info.num_layers) + " layers, hidden size " + text(info.hidden_size) +
                           ", MLP " + text(info.intermediate_size) + ", " + text(info.num_heads) +
                           " heads of " + text(info.head_dim) + ", " + text(info.num_kv_heads) +
                           " for keys and values");
  print_row("vocabulary",
            grouped(info.vocab_size) + " tokens, context " + grouped(info.context_length));
  const std::string patches = "patches of " + text(info.patch_size) + ", ";
  print_row("images", info.image_size == 0
                          ? "of any size, " + patches + "visual tokens as their size asks for"
                          : text(info.image_size) + " x " + text(info.image_size) + " pixels, " +
                                patches + text(info.visual_tokens) + " visual tokens");
  print_row("prompt style", info.prompt_style + ", image mode " + info.image_mode);
  print_row("sink dimensions", info.sink_dims.empty() ? "none: VAR can't act"
                                                      : list_text(info.sink_dims) + " (" +
                                                            info.sink_dims_source + ")");
  print_row("VAR defaults", "tau " + float_text(var.tau) + ", rho " + float_text(var.rho) + ", p " +
                                float_text(var.p) + ", min_visual_mass " +
                                float_text(var.min_visual_mass) +
                                (var.first_layer ? ", first layer " + text(*var.first_layer) : ""));
  if (verified) print_row("checksums", "all right");
}

int show_info(const InfoFlags& flags) {
  const libvar::ArchiveInfo info = libvar::read_archive_info(flags.model);
  if (flags.verify) {
    const InterruptScope interrupt;
    ProgressBar bar("verifying");
    libvar::verify_archive(flags.model, [&bar](std::int64_t done, std::int64_t total) {
      InterruptScope::check();
      bar.update(done, total);
    });
  }
  if (flags.json) {
    std::printf("%s\n", info_json(info, flags.verify).dump(2).c_str());
  } else {
    print_table(info, flags.model, flags.verify);
  }
  return kDone;
}

}  // namespace

void add_info(CLI::App& app, Action& action) {
  const auto flags = std::make_shared<InfoFlags>();
  CLI::App* command = app.add_subcommand("info", "Show what an archive holds");
  command->add_option("MODEL.pt", flags->model, "Archive written by var convert")->required();
  command->add_flag("--json", flags->json, "Print a JSON object");
  command->add_flag("--verify", flags->verify, "Read the whole file and check every checksum");
  flags->common.add(*command, "Without effect here, as --device and --threads");
  command->footer("Example:\n  var info llava.pt --verify");
  command->callback([flags, &action] { action = [flags] { return show_info(*flags); }; });
}

}  // namespace var_command
