#include <ATen/ops/empty.h>
#include <c10/util/Exception.h>
#include <c10/util/accumulate.h>
#include <caffe2/serialize/inline_container.h>

#include <utility>

#include "archive/archive.h"
#include "archive/mapped_file.h"
#include "archive/module_tree.h"
#include "archive/partial_file.h"
#include "libvar/error.h"

namespace libvar {
namespace {

/// PyTorchStreamWriter over a PartialFile. What goes wrong while writing is kept there, since the
/// writer finishes the zip file in its destructor and must not throw from it.
class RecordWriter {
 public:
  explicit RecordWriter(PartialFile& file)
      : file_(file), writer_([&file](const void* data, std::size_t size) {
          file.write(data, size);
          return size;
        }) {}

  ~RecordWriter() {
    if (!writer_.finalized()) file_.abandon();  // the destructor of writer_ still writes
  }

  void add(const std::string& record, const void* data, std::size_t size) {
    static const char nothing = 0;
    writer_.writeRecord(record, data != nullptr ? data : &nothing, size);
    file_.check();
  }

  void add(const std::string& record, const std::string& text) {
    add(record, text.data(), text.size());
  }

  void finish() {
    writer_.writeEndOfFile();
    file_.check();
  }

 private:
  PartialFile& file_;
  caffe2::serialize::PyTorchStreamWriter writer_;
};

std::int64_t bytes_of(const TensorSource& tensor) {
  return checked_numel(tensor.shape) * static_cast<std::int64_t>(c10::elementSize(tensor.dtype));
}

std::vector<std::int64_t> contiguous_strides(const std::vector<std::int64_t>& shape) {
  std::vector<std::int64_t> strides(shape.size(), 1);
  for (std::size_t i = shape.size(); i-- > 1;)
    strides[i - 1] = strides[i] * std::max<std::int64_t>(shape[i], 1);
  return strides;
}

void write_tensor(RecordWriter& writer, const std::string& record, const TensorSource& source) {
  const at::Tensor tensor = source.read();
  const bool fits = tensor.defined() && tensor.scalar_type() == source.dtype &&
                    tensor.is_contiguous() && tensor.device().is_cpu() &&
                    tensor.sizes() == at::IntArrayRef(source.shape);
  TORCH_INTERNAL_ASSERT(fits, "tensor ", source.name, " is not what was announced");
  writer.add(record, tensor.const_data_ptr(), tensor.nbytes());
}

}  // namespace

void write_archive(const std::filesystem::path& path, const std::vector<TensorSource>& tensors,
                   const CheckpointFiles& files, const ProgressCallback& on_progress) {
  std::map<std::string, PickledTensor> tree;
  std::int64_t total = 0;
  for (std::size_t i = 0; i < tensors.size(); ++i) {
    const TensorSource& source = tensors[i];
    if (checked_numel(source.shape) < 0)
      throw ArchiveError("tensor " + source.name + ": its sizes are not valid");
    PickledTensor pickled{std::to_string(i), source.dtype, 0, source.shape,
                          contiguous_strides(source.shape)};
    if (!tree.emplace(source.name, std::move(pickled)).second) {
      throw ArchiveError("tensor " + source.name + ": is given twice");
    }
    total += bytes_of(source);
  }
  const ModuleRecords records = write_module_tree(tree);

  PartialFile file(path);
  {
    // The order in which torch::jit::Module::save writes.
    RecordWriter writer(file);
    for (const auto& [name, text] : files) writer.add("extra/" + name, text);
    std::int64_t done = 0;
    if (on_progress) on_progress(done, total);
    for (std::size_t i = 0; i < tensors.size(); ++i) {
      write_tensor(writer, "data/" + std::to_string(i), tensors[i]);
      done += bytes_of(tensors[i]);
      if (on_progress) on_progress(done, total);
    }
    writer.add("data.pkl", records.data_pickle);
    writer.add("code/__torch__/libvar.py", records.code);
    writer.add("constants.pkl", std::string("\x80\x02).", 4));  // an empty tuple
    writer.add("byteorder", "little");
    writer.finish();
  }
  file.commit();
}

}  // namespace libvar
