#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <vector>

namespace libvar {

/// Largest integer taken from a configuration file; products of a few of them stay far from
/// overflow where it matters.
inline constexpr std::int64_t kMaxJsonInteger = std::int64_t{1} << 31;

/// "float32", "float16", "bfloat16"; the torch name of any other type.
std::string dtype_name(at::ScalarType dtype);

/// Typed reads from a JSON object. Every error is an ArchiveError that names the file, the key,
/// what was expected and what was found. A key whose value is null counts as absent. Refers to the
/// JSON value, which must outlive it.
class JsonFields {
 public:
  /// @throws ArchiveError  no JSON, or no object
  static nlohmann::json parse(const std::string& text, const std::string& where);

  /// @param where  begins every message: "config.json" or "config.json: text_config"
  JsonFields(const nlohmann::json& object, std::string where);

  bool has(const std::string& key) const;
  /// The JSON beneath a key; an error where it is absent.
  const nlohmann::json& at(const std::string& key) const;

  std::int64_t integer(const std::string& key, std::optional<std::int64_t> fallback = {},
                       std::int64_t least = 0, std::int64_t most = kMaxJsonInteger) const;
  double number(const std::string& key, std::optional<double> fallback = {}) const;
  bool boolean(const std::string& key, std::optional<bool> fallback = {}) const;
  std::string text(const std::string& key, std::optional<std::string> fallback = {}) const;
  /// An integer, or a list of them.
  std::vector<std::int64_t> integers(const std::string& key, std::int64_t least,
                                     std::int64_t most) const;
  std::vector<double> numbers(const std::string& key) const;
  std::vector<std::string> texts(const std::string& key) const;
  JsonFields object(const std::string& key) const;

  /// @throws ArchiveError  "where: key: expected ..., found ..."
  [[noreturn]] void fail(const std::string& key, const std::string& expected) const;

 private:
  const nlohmann::json& object_;
  std::string where_;
};

}  // namespace libvar
