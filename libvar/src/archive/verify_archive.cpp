#include <zip.h>

#include <memory>
#include <string>
#include <vector>

#include "archive/archive.h"
#include "archive/mapped_file.h"
#include "libvar/convert.h"
#include "libvar/error.h"

namespace libvar {
namespace {

struct CloseZip {
  void operator()(zip_t* zip) const { zip_discard(zip); }
};

struct CloseEntry {
  void operator()(zip_file_t* entry) const { zip_fclose(entry); }
};

using Zip = std::unique_ptr<zip_t, CloseZip>;

Zip open_zip(const std::filesystem::path& path) {
  int code = 0;
  Zip zip(zip_open(path.c_str(), ZIP_RDONLY | ZIP_CHECKCONS, &code));
  if (zip == nullptr) {
    zip_error_t error;
    zip_error_init_with_code(&error, code);
    const std::string text = zip_error_strerror(&error);
    zip_error_fini(&error);
    throw ArchiveError(path.string() + ": is truncated or damaged, or no zip file: " + text);
  }
  return zip;
}

/// Reads a record to its end; libzip compares its checksum there.
void check_record(const std::filesystem::path& path, zip_t* zip, zip_uint64_t index,
                  const zip_stat_t& status, std::vector<char>& buffer,
                  const std::function<void(std::int64_t)>& on_bytes) {
  const std::string what = path.string() + ": record " + status.name + " is damaged: ";
  const std::unique_ptr<zip_file_t, CloseEntry> entry(zip_fopen_index(zip, index, 0));
  if (entry == nullptr) throw ArchiveError(what + zip_strerror(zip));
  zip_uint64_t done = 0;
  while (true) {
    const zip_int64_t count = zip_fread(entry.get(), buffer.data(), buffer.size());
    if (count < 0) throw ArchiveError(what + zip_file_strerror(entry.get()));
    if (count == 0) break;
    done += static_cast<zip_uint64_t>(count);
    on_bytes(count);
  }
  if (done != status.size) {
    throw ArchiveError(what + "expected " + std::to_string(status.size) + " bytes, found " +
                       std::to_string(done));
  }
}

}  // namespace

void verify_archive(const std::filesystem::path& path, const ProgressCallback& on_progress) {
  MappedFile::open(path);  // its messages for what is no file at all
  const Zip zip = open_zip(path);
  const zip_int64_t count = zip_get_num_entries(zip.get(), 0);
  std::vector<zip_stat_t> records(static_cast<std::size_t>(count));
  std::int64_t total = 0;
  for (zip_int64_t i = 0; i < count; ++i) {
    zip_stat_t& status = records[static_cast<std::size_t>(i)];
    if (zip_stat_index(zip.get(), static_cast<zip_uint64_t>(i), 0, &status) != 0) {
      throw ArchiveError(path.string() + ": record " + std::to_string(i) +
                         " is damaged: " + zip_strerror(zip.get()));
    }
    total += static_cast<std::int64_t>(status.size);
  }
  std::int64_t done = 0;
  std::vector<char> buffer(std::size_t{1} << 20);
  const auto on_bytes = [&](std::int64_t bytes) {
    done += bytes;
    if (on_progress) on_progress(done, total);
  };
  for (zip_int64_t i = 0; i < count; ++i) {
    check_record(path, zip.get(), static_cast<zip_uint64_t>(i),
                 records[static_cast<std::size_t>(i)], buffer, on_bytes);
  }
  // The sums say that the records are as written; the rest says that they are a model.
  read_model_config(Archive::open(path));
}

}  // namespace libvar
