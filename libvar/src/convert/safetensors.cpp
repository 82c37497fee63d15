#include "convert/safetensors.h"

#include <ATen/ops/empty.h>

#include <algorithm>
#include <array>
#include <cstring>
#include <nlohmann/json.hpp>
#include <utility>

#include "families/json_fields.h"
#include "libvar/error.h"

namespace libvar {
namespace {

constexpr std::uint64_t kLengthBytes = 8;
constexpr std::uint64_t kMaxHeader = std::uint64_t{100} << 20;  // the format's own limit is 100 MB

struct Dtype {
  const char* name;
  std::uint64_t bytes;
};

// All of the format; converting takes the first three only, the others may be buffers that are left
// out.
constexpr std::array<Dtype, 15> kDtypes{{{"F32", 4},
                                         {"F16", 2},
                                         {"BF16", 2},
                                         {"F64", 8},
                                         {"I64", 8},
                                         {"I32", 4},
                                         {"I16", 2},
                                         {"I8", 1},
                                         {"U64", 8},
                                         {"U32", 4},
                                         {"U16", 2},
                                         {"U8", 1},
                                         {"BOOL", 1},
                                         {"F8_E4M3", 1},
                                         {"F8_E5M2", 1}}};

std::uint64_t little_endian(std::string_view bytes) {
  std::uint64_t value = 0;
  for (std::size_t i = 0; i < bytes.size(); ++i)
    value |= std::uint64_t{static_cast<unsigned char>(bytes[i])} << (8 * i);
  return value;
}

}  // namespace

SafetensorsFile SafetensorsFile::open(const std::filesystem::path& path) {
  SafetensorsFile out(MappedFile::open(path));
  out.read_header();
  out.check_places();
  out.file_->advise_sequential();
  return out;
}

void SafetensorsFile::read_header() {
  const std::string where = file_->path().string();
  const std::string_view bytes = file_->bytes();
  if (bytes.size() < kLengthBytes) {
    throw ArchiveError(where + ": is truncated: " + std::to_string(bytes.size()) +
                       " bytes, no safetensors header");
  }
  const std::uint64_t length = little_endian(bytes.substr(0, kLengthBytes));
  if (length > kMaxHeader) {
    throw ArchiveError(where + ": is no safetensors file: its header would have " +
                       std::to_string(length) + " bytes");
  }
  if (length > bytes.size() - kLengthBytes) {
    throw ArchiveError(where + ": is truncated within its header of " + std::to_string(length) +
                       " bytes");
  }
  const nlohmann::json header = JsonFields::parse(std::string(bytes.substr(kLengthBytes, length)),
                                                  where + ": safetensors header");
  const std::uint64_t data = kLengthBytes + length;
  for (const auto& [name, json] : header.items()) {
    if (name == "__metadata__") continue;
    const std::string what = where + ": tensor " + name;
    if (!json.is_object()) throw ArchiveError(what + ": expected dtype, shape and data_offsets");
    const JsonFields fields(json, what);
    SafetensorsEntry entry;
    entry.dtype = fields.text("dtype");
    const auto known = std::find_if(kDtypes.begin(), kDtypes.end(),
                                    [&](const Dtype& d) { return entry.dtype == d.name; });
    if (known == kDtypes.end()) fields.fail("dtype", "a type of the safetensors format");
    if (!fields.at("shape").is_array()) fields.fail("shape", "a list of sizes");
    entry.shape = fields.integers("shape", 0, kMaxJsonInteger);
    const std::vector<std::int64_t> offsets = fields.at("data_offsets").is_array()
                                                  ? fields.integers("data_offsets", 0, INT64_MAX)
                                                  : std::vector<std::int64_t>{};
    if (offsets.size() != 2 || offsets[0] > offsets[1])
      fields.fail("data_offsets", "begin and end");
    const auto begin = static_cast<std::uint64_t>(offsets[0]);
    const auto end = static_cast<std::uint64_t>(offsets[1]);
    if (end > bytes.size() - data) {
      throw ArchiveError(what + ": the file is truncated: the tensor ends at byte " +
                         std::to_string(end) + " of the data, there are " +
                         std::to_string(bytes.size() - data));
    }
    const std::int64_t numel = checked_numel(entry.shape);
    if (numel < 0 || static_cast<std::uint64_t>(numel) * known->bytes != end - begin) {
      throw ArchiveError(what + ": expected as many bytes as shape " + json.at("shape").dump() +
                         " of " + entry.dtype + " has, found " + std::to_string(end - begin));
    }
    entry.begin = data + begin;
    entry.end = data + end;
    entries_.emplace(name, std::move(entry));
  }
}

void SafetensorsFile::check_places() const {
  std::vector<std::pair<const SafetensorsEntry*, const std::string*>> order;
  for (const auto& [name, entry] : entries_) {
    if (entry.begin < entry.end) order.emplace_back(&entry, &name);
  }
  std::sort(order.begin(), order.end(),
            [](const auto& a, const auto& b) { return a.first->begin < b.first->begin; });
  for (std::size_t i = 1; i < order.size(); ++i) {
    if (order[i].first->begin < order[i - 1].first->end) {
      throw ArchiveError(file_->path().string() + ": tensors " + *order[i - 1].second + " and " +
                         *order[i].second + " lie in the same place");
    }
  }
}

at::ScalarType SafetensorsFile::dtype(const std::string& name) const {
  const std::string& dtype = entries_.at(name).dtype;
  if (dtype == "F32") return at::kFloat;
  if (dtype == "F16") return at::kHalf;
  if (dtype == "BF16") return at::kBFloat16;
  throw ArchiveError(file_->path().string() + ": tensor " + name +
                     ": expected dtype F32, F16 or BF16, found " + dtype);
}

at::Tensor SafetensorsFile::tensor(const std::string& name) const {
  const SafetensorsEntry& entry = entries_.at(name);
  const at::ScalarType type = dtype(name);
  const auto item = static_cast<std::uint64_t>(c10::elementSize(type));
  if (entry.begin % item == 0) return tensor_view(file_, entry.begin, entry.shape, type);
  at::Tensor copy = at::empty(entry.shape, at::TensorOptions().dtype(type));
  if (copy.numel() > 0) {  // an empty tensor has no storage
    std::memcpy(copy.mutable_data_ptr(), file_->bytes().data() + entry.begin,
                entry.end - entry.begin);
  }
  return copy;
}

}  // namespace libvar
