#include "families/json_fields.h"

#include <cmath>
#include <utility>

#include "libvar/error.h"

namespace libvar {
namespace {

constexpr int kMaxDepth = 64;

/// A value as messages show it.
std::string shown(const nlohmann::json& value) {
  constexpr std::size_t kMost = 80;
  const std::string text = value.dump(-1, ' ', true, nlohmann::json::error_handler_t::replace);
  return text.size() <= kMost ? text : text.substr(0, kMost) + "...";
}

}  // namespace

std::string dtype_name(at::ScalarType dtype) {
  switch (dtype) {
    case at::kFloat:
      return "float32";
    case at::kHalf:
      return "float16";
    case at::kBFloat16:
      return "bfloat16";
    case at::kChar:
      return "int8";
    default:
      return c10::toString(dtype);
  }
}

nlohmann::json JsonFields::parse(const std::string& text, const std::string& where) {
  nlohmann::json json;
  try {
    // Deeper values are nobody's configuration, and copying or printing them recurses.
    const auto limit_depth = [&](int depth, nlohmann::json::parse_event_t, nlohmann::json&) {
      if (depth > kMaxDepth) throw ArchiveError(where + ": is nested too deep");
      return true;
    };
    json = nlohmann::json::parse(text, limit_depth);
  } catch (const nlohmann::json::parse_error& error) {
    throw ArchiveError(where + ": is no JSON (byte " + std::to_string(error.byte) + ")");
  }
  if (!json.is_object())
    throw ArchiveError(where + ": expected an object in braces, found " + shown(json));
  return json;
}

JsonFields::JsonFields(const nlohmann::json& object, std::string where)
    : object_(object), where_(std::move(where)) {}

bool JsonFields::has(const std::string& key) const {
  const auto found = object_.find(key);
  return found != object_.end() && !found->is_null();
}

const nlohmann::json& JsonFields::at(const std::string& key) const {
  if (!has(key)) throw ArchiveError(where_ + ": " + key + " is missing");
  return *object_.find(key);
}

std::int64_t JsonFields::integer(const std::string& key, std::optional<std::int64_t> fallback,
                                 std::int64_t least, std::int64_t most) const {
  if (!has(key) && fallback) return *fallback;
  const nlohmann::json& value = at(key);
  const std::string range =
      "an integer in [" + std::to_string(least) + ", " + std::to_string(most) + "]";
  if (!value.is_number_integer()) fail(key, range);
  if (value.is_number_unsigned() &&
      value.get<std::uint64_t>() > static_cast<std::uint64_t>(INT64_MAX))
    fail(key, range);
  const auto out = value.get<std::int64_t>();
  if (out < least || out > most) fail(key, range);
  return out;
}

double JsonFields::number(const std::string& key, std::optional<double> fallback) const {
  if (!has(key) && fallback) return *fallback;
  if (!at(key).is_number()) fail(key, "a number");
  return at(key).get<double>();
}

bool JsonFields::boolean(const std::string& key, std::optional<bool> fallback) const {
  if (!has(key) && fallback) return *fallback;
  if (!at(key).is_boolean()) fail(key, "true or false");
  return at(key).get<bool>();
}

std::string JsonFields::text(const std::string& key, std::optional<std::string> fallback) const {
  if (!has(key) && fallback) return *fallback;
  if (!at(key).is_string()) fail(key, "a text");
  return at(key).get<std::string>();
}

std::vector<std::int64_t> JsonFields::integers(const std::string& key, std::int64_t least,
                                               std::int64_t most) const {
  const nlohmann::json& value = at(key);
  if (!value.is_array()) return {integer(key, {}, least, most)};
  std::vector<std::int64_t> out;
  for (const nlohmann::json& item : value) {
    const bool valid = item.is_number_integer() && item >= least && item <= most;
    if (!valid)
      fail(key, "integers in [" + std::to_string(least) + ", " + std::to_string(most) + "]");
    out.push_back(item.get<std::int64_t>());
  }
  return out;
}

std::vector<double> JsonFields::numbers(const std::string& key) const {
  std::vector<double> out;
  if (!at(key).is_array()) fail(key, "a list of numbers");
  for (const nlohmann::json& item : at(key)) {
    if (!item.is_number()) fail(key, "a list of numbers");
    out.push_back(item.get<double>());
  }
  return out;
}

std::vector<std::string> JsonFields::texts(const std::string& key) const {
  std::vector<std::string> out;
  if (!at(key).is_array()) fail(key, "a list of texts");
  for (const nlohmann::json& item : at(key)) {
    if (!item.is_string()) fail(key, "a list of texts");
    out.push_back(item.get<std::string>());
  }
  return out;
}

JsonFields JsonFields::object(const std::string& key) const {
  if (!at(key).is_object()) fail(key, "an object in braces");
  return {at(key), where_ + ": " + key};
}

void JsonFields::fail(const std::string& key, const std::string& expected) const {
  const std::string found = has(key) ? shown(*object_.find(key)) : "nothing";
  throw ArchiveError(where_ + ": " + key + ": expected " + expected + ", found " + found);
}

}  // namespace libvar
