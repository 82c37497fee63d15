#include "archive/archive.h"

#include <c10/util/Exception.h>
#include <caffe2/serialize/inline_container.h>

#include <algorithm>
#include <cctype>
#include <cstring>
#include <string_view>
#include <tuple>
#include <utility>

#include "archive/mapped_file.h"
#include "archive/module_tree.h"
#include "families/json_fields.h"
#include "libvar/error.h"
#include "quantized_names.h"

namespace libvar {
namespace {

constexpr std::string_view kNotOurs =
    ": is not a libvar archive; `var convert` makes one from a checkpoint";
// Bytes of records that are read whole: a tokenizer.json has some millions, a data.pkl some
// hundred thousand.
constexpr std::size_t kMaxText = std::size_t{64} << 20;
constexpr std::size_t kMaxPickle = std::size_t{16} << 20;

class MappedAdapter : public caffe2::serialize::ReadAdapterInterface {
 public:
  explicit MappedAdapter(std::shared_ptr<const MappedFile> file) : file_(std::move(file)) {}

  std::size_t size() const override { return file_->size(); }

  std::size_t read(std::uint64_t position, void* to, std::size_t count,
                   const char* what) const override {
    if (position > file_->size()) return 0;
    const std::size_t done = std::min<std::uint64_t>(count, file_->size() - position);
    std::memcpy(to, file_->bytes().data() + position, done);
    return done;
  }

 private:
  std::shared_ptr<const MappedFile> file_;
};

/// The zip file beneath an archive.
class Records {
 public:
  explicit Records(std::shared_ptr<const MappedFile> file) : file_(std::move(file)) {
    if (file_->bytes().substr(0, 4) != std::string_view("PK\3\4", 4)) {
      throw ArchiveError(name() +
                         ": is not a TorchScript archive (no zip file); `var convert` makes one "
                         "from a checkpoint");
    }
    try {
      reader_ = std::make_unique<caffe2::serialize::PyTorchStreamReader>(
          std::make_shared<MappedAdapter>(file_));
      reader_->setShouldLoadDebugSymbol(false);
      names_ = reader_->getAllRecords();
    } catch (const c10::Error& error) {
      throw ArchiveError(name() + ": is truncated or damaged, or no TorchScript archive: " +
                         error.what_without_backtrace());
    }
  }

  const std::vector<std::string>& names() const { return names_; }

  bool has(const std::string& record) const {
    return std::find(names_.begin(), names_.end(), record) != names_.end();
  }

  std::string text(const std::string& record, std::size_t most = kMaxText) const {
    try {
      const std::size_t size = reader_->getRecordSize(record);
      if (size > most) throw ArchiveError(name() + ": record " + record + " is too large");
      std::string out(size, '\0');
      reader_->getRecord(record, out.data(), size);
      return out;
    } catch (const c10::Error& error) {
      throw ArchiveError(name() + ": record " + record +
                         " is damaged: " + error.what_without_backtrace());
    }
  }

  /// Place of an uncompressed record in the file.
  std::pair<std::uint64_t, std::uint64_t> span(const std::string& record) const {
    std::uint64_t header = 0, offset = 0, size = 0;
    try {
      header = reader_->getRecordHeaderOffset(record);
      offset = reader_->getRecordOffset(record);
      size = reader_->getRecordSize(record);
    } catch (const c10::Error& error) {
      throw ArchiveError(name() + ": record " + record +
                         " is damaged: " + error.what_without_backtrace());
    }
    constexpr std::uint64_t kMethodInHeader = 8;  // 2 bytes, little-endian, 0: stored
    if (offset > file_->size() || size > file_->size() - offset ||
        header + kMethodInHeader + 2 > file_->size()) {
      throw ArchiveError(name() + ": is truncated: record " + record + " ends at byte " +
                         std::to_string(offset + size) + ", the file has " +
                         std::to_string(file_->size()));
    }
    if (file_->bytes().substr(header + kMethodInHeader, 2) != std::string_view("\0\0", 2)) {
      throw ArchiveError(name() + ": record " + record + " is compressed, so it can't be mapped");
    }
    return {offset, size};
  }

  std::string name() const { return file_->path().string(); }

  /// Of the records' names and checksums, as PyTorch's writer computes it.
  std::string content_id() const { return reader_->serializationId(); }

  const std::shared_ptr<const MappedFile>& file() const { return file_; }

 private:
  std::shared_ptr<const MappedFile> file_;
  std::unique_ptr<caffe2::serialize::PyTorchStreamReader> reader_;
  std::vector<std::string> names_;
};

/// True where the word `def` stands anywhere in the source of a class.
bool holds_function(std::string_view code) {
  const auto word = [](char c) {
    return std::isalnum(static_cast<unsigned char>(c)) != 0 || c == '_';
  };
  for (std::size_t at = code.find("def"); at != std::string_view::npos;
       at = code.find("def", at + 1)) {
    const bool begins = at == 0 || !word(code[at - 1]);
    const bool ends = at + 3 >= code.size() || !word(code[at + 3]);
    if (begins && ends) return true;
  }
  return false;
}

void refuse_code(const Records& records) {
  for (const std::string& record : records.names()) {
    const bool debug =
        record.size() >= 10 && record.compare(record.size() - 10, 10, ".debug_pkl") == 0;
    if (record.rfind("code/", 0) != 0 || debug) continue;
    if (holds_function(records.text(record))) {
      throw ArchiveError(
          records.name() + ": holds code (" + record +
          "), as scripted models do; libvar runs none: convert the checkpoint with `var convert`");
    }
  }
}

at::Tensor map_tensor(const Records& records, const std::string& tensor,
                      const PickledTensor& pickled) {
  const std::string what = records.name() + ": tensor " + tensor + ": ";
  const std::int64_t numel = checked_numel(pickled.shape);
  if (numel < 0 || pickled.offset < 0 || pickled.strides.size() != pickled.shape.size()) {
    throw ArchiveError(what + "its sizes and strides are not valid");
  }
  std::int64_t stride = 1;
  for (std::size_t i = pickled.shape.size(); i-- > 0;) {
    if (numel > 0 && pickled.shape[i] != 1 && pickled.strides[i] != stride) {
      throw ArchiveError(what + "expected rows one behind the other, found other strides");
    }
    stride *= std::max<std::int64_t>(pickled.shape[i], 1);
  }
  const std::string record = "data/" + pickled.storage;
  if (!records.has(record)) throw ArchiveError(what + "record " + record + " is missing");
  const auto [offset, size] = records.span(record);
  const std::uint64_t item = c10::elementSize(pickled.dtype);
  const std::uint64_t capacity = size / item;
  const auto first = static_cast<std::uint64_t>(pickled.offset);
  if (first > capacity || static_cast<std::uint64_t>(numel) > capacity - first) {
    throw ArchiveError(what + "record " + record + " has " + std::to_string(size) +
                       " bytes, too few for it");
  }
  const std::uint64_t begin = offset + first * item;
  if (begin % item != 0)
    throw ArchiveError(what + "record " + record + " is not aligned, so it can't be mapped");
  return tensor_view(records.file(), begin, pickled.shape, pickled.dtype);
}

void check_tensor(const std::map<std::string, at::Tensor>& tensors, const std::string& name,
                  const std::vector<std::int64_t>& shape, const std::string& dtype) {
  const auto found = tensors.find(name);
  if (found == tensors.end()) throw ArchiveError("tensor " + name + " is missing");
  const at::Tensor& tensor = found->second;
  if (tensor.sizes() != at::IntArrayRef(shape)) {
    throw ArchiveError("tensor " + name + ": expected shape " + c10::str(at::IntArrayRef(shape)) +
                       ", found " + c10::str(tensor.sizes()));
  }
  if (dtype_name(tensor.scalar_type()) != dtype) {
    throw ArchiveError("tensor " + name + ": expected " + dtype + ", found " +
                       dtype_name(tensor.scalar_type()));
  }
}

}  // namespace

Archive Archive::open(const std::filesystem::path& path) {
  const Records records(MappedFile::open(path));
  refuse_code(records);
  Archive archive;
  archive.file_ = records.file();
  archive.content_id_ = records.content_id();
  const std::string extra = "extra/";
  std::size_t bytes_left = kMaxText;  // of all extra files together
  for (const std::string& record : records.names()) {
    if (record.rfind(extra, 0) != 0) continue;
    std::string text = records.text(record, bytes_left);
    bytes_left -= text.size();
    archive.files_[record.substr(extra.size())] = std::move(text);
  }
  const auto manifest = archive.files_.find("libvar.json");
  if (manifest == archive.files_.end())
    throw ArchiveError(path.string() + std::string(kNotOurs) + " (no libvar.json)");
  archive.manifest_ = parse_manifest(manifest->second, path);
  if (!records.has("data.pkl"))
    throw ArchiveError(path.string() + std::string(kNotOurs) + " (no data.pkl)");
  const auto tree =
      read_module_tree(records.text("data.pkl", kMaxPickle), path.string() + ": data.pkl");
  for (const auto& [name, pickled] : tree)
    archive.tensors_.emplace(name, map_tensor(records, name, pickled));
  return archive;
}

ModelConfig read_model_config(const Archive& archive) {
  const std::string path = archive.path().string();
  try {
    const Family& family = find_family(archive.files());
    if (family.name() != archive.manifest().family) {
      throw ArchiveError("libvar.json: family: expected " + family.name() + ", found " +
                         archive.manifest().family);
    }
    ModelConfig config = family.read_config(archive.files());
    const ArchiveManifest& manifest = archive.manifest();
    for (const TensorSpec& spec : family.expected_tensors(config)) {
      if (spec.is_quantizable && !manifest.quantization.empty()) {
        check_tensor(archive.tensors(), spec.name, spec.shape, manifest.quantization);
        check_tensor(archive.tensors(), scale_name(spec.name), {spec.shape[0]}, "float32");
      } else {
        check_tensor(archive.tensors(), spec.name, spec.shape, manifest.dtype);
      }
    }
    for (const std::int64_t dim : archive.manifest().sink_dimensions.dims) {
      if (dim >= config.decoder.hidden_size) {
        throw ArchiveError("libvar.json: sink_dimensions: expected less than hidden_size " +
                           std::to_string(config.decoder.hidden_size) + ", found " +
                           std::to_string(dim));
      }
    }
    return config;
  } catch (const ArchiveError& error) {
    throw ArchiveError(path + ": " + error.what());
  }
}

}  // namespace libvar
