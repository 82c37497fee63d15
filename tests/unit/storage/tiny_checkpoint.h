#pragma once

#include <filesystem>
#include <nlohmann/json.hpp>
#include <string>

#include "golden_fixture.h"

namespace libvar::testing {

/// A LLaVA of a few kilobytes in the published layout with the tokenizer of the goldens; tests
/// change a part and write it.
struct TinyCheckpoint {
  nlohmann::json config, generation_config, preprocessor_config;
  Tensors tensors;  ///< layout A

  explicit TinyCheckpoint(at::ScalarType dtype = at::kFloat);
  void write(const std::filesystem::path& dir, int shards = 1) const;
};

/// config.json and its companions as llava-hf/llava-1.5-7b-hf publishes them (models.md 1.1).
nlohmann::json published_7b_config();
nlohmann::json published_preprocessor_config();

/// The message of the exception of type Error that `call` throws; empty where it throws nothing.
template <typename Error, typename Call>
std::string message_of(const Call& call) {
  try {
    call();
  } catch (const Error& error) {
    return error.what();
  }
  return "";
}

}  // namespace libvar::testing
