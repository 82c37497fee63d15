#pragma once

#include <cstdint>
#include <filesystem>
#include <memory>
#include <string>
#include <vector>

#include "libvar/request.h"

namespace libvar {

/// Where and in which type a model is computed, and how its weights get there.
struct LoadOptions {
  std::string device = "auto";  ///< auto (CUDA where there is one), cpu, cuda, cuda:N
  /// auto, fp32, bf16, fp16. auto: the archive's on CUDA; on a CPU bf16 where the processor has
  /// bf16 dot products, else fp32 if it fits in memory.
  std::string dtype = "auto";
  /// On a CPU, for weights of the dtype of the computation: map (use the mapped file in place,
  /// shared with other processes; its pages are fetched where they fit in memory), copy (into
  /// memory of huge pages, from which they are read up to 1.6 times as fast: for many tokens) or
  /// auto: copy where an eighth more than their size and 2 GiB are available, else map.
  std::string weights = "map";
  ProgressCallback on_progress = {};  ///< called while weights are read
};

class LoadedModel;  // private

/// A model's weights and everything needed to run them. Immutable; shared between threads and
/// sessions.
class Model {
 public:
  /// Loads an archive written by `var convert`. The file is mapped; what is not used in place goes
  /// straight from there to where it is computed with, and leaves the memory of the mapping.
  ///
  /// @throws ArchiveError   not an archive of this library, damaged, or of another format version
  /// @throws ConfigError    unknown device, dtype or LoadOptions::weights; a head size above 256 on
  ///                        CUDA
  /// @throws ResourceError  it does not fit in memory
  static std::shared_ptr<const Model> load(const std::filesystem::path& path,
                                           const LoadOptions& options = {});

  /// A model with other sink dimensions and the same weights, which both share.
  ///
  /// @param source  how they are known, for people
  /// @throws ConfigError  not 1 to 8 different dimensions below the hidden size
  std::shared_ptr<const Model> with_sink_dimensions(const std::vector<std::int64_t>& dims,
                                                    const std::string& source) const;

  ~Model();
  Model(const Model&) = delete;
  Model& operator=(const Model&) = delete;

  const std::string& family() const;    ///< "llava"
  std::string device() const;           ///< "cpu", "cuda:0"
  std::string dtype() const;            ///< "float32", "bfloat16", "float16": of the computation
  std::int64_t num_layers() const;      ///< of the language model
  std::int64_t context_length() const;  ///< most positions of a sequence
  VarParams var_defaults() const;       ///< the paper's, changed by what the archive stores
  bool has_sink_dimensions() const;     ///< false: VAR can't act
  const std::vector<std::int64_t>& sink_dimensions() const;
  double load_ms() const;

  const LoadedModel& loaded() const { return *loaded_; }  ///< for the library itself

 private:
  explicit Model(std::unique_ptr<LoadedModel> loaded);
  std::unique_ptr<LoadedModel> loaded_;
};

}  // namespace libvar
