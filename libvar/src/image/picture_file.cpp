#include "image/picture_file.h"

#include <c10/util/StringUtil.h>
#include <zlib.h>

#include <algorithm>
#include <cstdlib>
#include <limits>

#include "libvar/error.h"

namespace libvar {
namespace {

constexpr std::int64_t kMaxPixels = std::int64_t{1} << 28;  // 800 MB of RGB
constexpr std::string_view kPngSignature("\x89PNG\r\n\x1a\n", 8);

/// The bytes of one file, with messages that name it.
class Reader {
 public:
  Reader(std::string_view bytes, const std::string& name, const char* format)
      : bytes_(bytes), name_(name), format_(format) {}

  std::size_t size() const { return bytes_.size(); }

  std::uint64_t big(std::size_t offset, std::size_t count) const {
    const std::string_view field = range(offset, count);
    std::uint64_t value = 0;
    for (char byte : field) value = value << 8 | static_cast<unsigned char>(byte);
    return value;
  }

  std::uint64_t little(std::size_t offset, std::size_t count) const {
    const std::string_view field = range(offset, count);
    std::uint64_t value = 0;
    for (auto byte = field.rbegin(); byte != field.rend(); ++byte) {
      value = value << 8 | static_cast<unsigned char>(*byte);
    }
    return value;
  }

  std::string_view range(std::size_t offset, std::size_t count) const {
    if (offset > bytes_.size() || count > bytes_.size() - offset) truncated();
    return bytes_.substr(offset, count);
  }

  [[noreturn]] void truncated() const {
    throw InputError(
        c10::str("image ", name_, ": truncated ", format_, " file of ", bytes_.size(), " bytes"));
  }

  [[noreturn]] void damaged(const std::string& what) const {
    throw InputError(c10::str("image ", name_, ": damaged ", format_, " file: ", what));
  }

  void check_size(std::int64_t width, std::int64_t height) const {
    if (width <= 0 || height <= 0)
      damaged(c10::str("a picture of ", width, " x ", height, " pixels"));
    if (width > kMaxPixels / height) {
      throw InputError(c10::str("image ", name_, ": ", width, " x ", height, " pixels, at most ",
                                kMaxPixels, " are supported"));
    }
  }

 private:
  std::string_view bytes_;
  const std::string& name_;
  const char* format_;
};

/// Keeps the chunks that the pixels need. The others hold what libpng would warn about (profiles)
/// or alpha (tRNS).
PictureFile inspect_png(std::string_view bytes, const std::string& name) {
  const Reader reader(bytes, name, "PNG");
  PictureFile file;
  file.bytes.reserve(bytes.size());
  file.bytes = kPngSignature;
  bool has_pixels = false;
  for (std::size_t at = kPngSignature.size(); true;) {
    const std::size_t length = reader.big(at, 4);
    const std::string_view type = reader.range(at + 4, 4);
    const std::string_view chunk = reader.range(at, length + 12);
    const std::string_view data = chunk.substr(8, length);
    const bool critical = type == "IHDR" || type == "PLTE" || type == "IDAT" || type == "IEND";
    if (critical) {
      const auto sum =
          crc32(0, reinterpret_cast<const Bytef*>(chunk.data()) + 4, static_cast<uInt>(length + 4));
      if (sum != reader.big(at + 8 + length, 4))
        reader.damaged(c10::str("wrong checksum of its ", type, " chunk"));
      file.bytes += chunk;
    }
    if (at == kPngSignature.size()) {
      if (type != "IHDR" || length != 13) reader.damaged("no IHDR chunk at its start");
      file.width = static_cast<std::int64_t>(reader.big(at + 8, 4));
      file.height = static_cast<std::int64_t>(reader.big(at + 12, 4));
      reader.check_size(file.width, file.height);
    }
    if (type == "IDAT") has_pixels = true;
    if (type == "eXIf") file.orientation = exif_orientation(data);
    if (type == "IEND") break;
    at += chunk.size();
  }
  if (!has_pixels) reader.damaged("no IDAT chunk");
  return file;
}

namespace jpeg {

constexpr unsigned kStart = 0xD8, kEnd = 0xD9, kScan = 0xDA, kTemporary = 0x01;

bool is_restart(unsigned marker) {
  return marker >= 0xD0 && marker <= 0xD7;
}

bool is_frame(unsigned marker) {  // SOF0 to SOF15 but for DHT, JPG and DAC
  return marker >= 0xC0 && marker <= 0xCF && marker != 0xC4 && marker != 0xC8 && marker != 0xCC;
}

/// Application data and comments but for JFIF and Adobe's, which tell the colour space.
bool is_metadata(unsigned marker) {
  return (marker >= 0xE1 && marker <= 0xEF && marker != 0xEE) || marker == 0xFE;
}

}  // namespace jpeg

/// Copies the segments that the pixels need, up to the end-of-image marker, which must be there.
class JpegInspector {
 public:
  JpegInspector(std::string_view bytes, const std::string& name)
      : bytes_(bytes), reader_(bytes, name, "JPEG") {
    file_.bytes.reserve(bytes.size());
    file_.bytes = bytes.substr(0, 2);
  }

  PictureFile inspect() {
    bool has_scan = false;
    for (std::size_t at = 2; true;) {
      at = bytes_.find('\xff', at);
      while (at != std::string_view::npos && at + 1 < bytes_.size() && bytes_[at + 1] == '\xff')
        ++at;
      if (at == std::string_view::npos || at + 1 >= bytes_.size()) reader_.truncated();
      const unsigned marker = static_cast<unsigned char>(bytes_[at + 1]);
      if (marker == jpeg::kEnd) {
        file_.bytes += bytes_.substr(at, 2);
        break;
      }
      if (marker == 0 || marker == jpeg::kTemporary || marker == jpeg::kStart ||
          jpeg::is_restart(marker)) {
        at += 2;
        continue;
      }
      if (marker == jpeg::kScan) {
        if (file_.width == 0) reader_.damaged("its pixels come before their size");
        has_scan = true;
      }
      at = segment(marker, at);
    }
    if (!has_scan) reader_.damaged("no pixels in it");
    return std::move(file_);
  }

 private:
  /// Handles the segment at `at` and gives the place behind it and behind its entropy-coded data.
  std::size_t segment(unsigned marker, std::size_t at) {
    const std::size_t length = reader_.big(at + 2, 2);
    if (length < 2) reader_.damaged(c10::str("a segment of length ", length));
    const std::string_view payload = reader_.range(at + 4, length - 2);
    if (marker == 0xE1 && payload.starts_with("Exif") && !seen_exif_) {
      file_.orientation = exif_orientation(payload);
      seen_exif_ = true;
    }
    if (jpeg::is_frame(marker)) {
      file_.height = static_cast<std::int64_t>(reader_.big(at + 5, 2));
      file_.width = static_cast<std::int64_t>(reader_.big(at + 7, 2));
      reader_.check_size(file_.width, file_.height);
    }
    std::size_t end = at + 2 + length;
    if (marker == jpeg::kScan) end = scan_end(end);
    if (!jpeg::is_metadata(marker)) file_.bytes += bytes_.substr(at, end - at);
    return end;
  }

  /// The next marker that is no restart marker; inside a scan 0xFF stands before 0 where it is
  /// data.
  std::size_t scan_end(std::size_t at) const {
    while (true) {
      at = bytes_.find('\xff', at);
      if (at == std::string_view::npos || at + 1 >= bytes_.size()) reader_.truncated();
      const unsigned next = static_cast<unsigned char>(bytes_[at + 1]);
      if (next == 0xff) {
        ++at;
      } else if (next == 0 || jpeg::is_restart(next)) {
        at += 2;
      } else {
        return at;
      }
    }
  }

  std::string_view bytes_;
  Reader reader_;
  PictureFile file_;
  bool seen_exif_ = false;
};

PictureFile inspect_webp(std::string_view bytes, const std::string& name) {
  const Reader reader(bytes, name, "WebP");
  const std::size_t end = reader.little(4, 4) + 8;
  PictureFile file;
  file.bytes = reader.range(0, end);
  bool has_pixels = false;
  for (std::size_t at = 12; at + 8 <= end;) {
    const std::string_view type = reader.range(at, 4);
    const std::size_t length = reader.little(at + 4, 4);
    const std::string_view data = reader.range(at + 8, length);
    if (type == "VP8X" && length >= 10) {
      if ((static_cast<unsigned char>(data[0]) & 2) != 0) {
        throw InputError(
            c10::str("image ", name, ": an animated WebP file; give a file with one picture"));
      }
      file.width = static_cast<std::int64_t>(reader.little(at + 12, 3)) + 1;
      file.height = static_cast<std::int64_t>(reader.little(at + 15, 3)) + 1;
    } else if (type == "VP8 " && length >= 10) {
      has_pixels = true;
      file.width = static_cast<std::int64_t>(reader.little(at + 14, 2) & 0x3fff);
      file.height = static_cast<std::int64_t>(reader.little(at + 16, 2) & 0x3fff);
    } else if (type == "VP8L" && length >= 5) {
      has_pixels = true;
      const std::uint64_t sizes = reader.little(at + 9, 4);
      file.width = static_cast<std::int64_t>(sizes & 0x3fff) + 1;
      file.height = static_cast<std::int64_t>(sizes >> 14 & 0x3fff) + 1;
    } else if (type == "EXIF") {
      file.orientation = exif_orientation(data);
    }
    at += 8 + length + length % 2;
  }
  if (!has_pixels) reader.damaged("no pixels in it");
  reader.check_size(file.width, file.height);
  return file;
}

PictureFile inspect_bmp(std::string_view bytes, const std::string& name) {
  const Reader reader(bytes, name, "BMP");
  const std::size_t pixels_at = reader.little(10, 4);
  const bool core_header = reader.little(14, 4) == 12;  // OS/2
  PictureFile file;
  std::uint64_t bits = 0, compression = 0;
  if (core_header) {
    file.width = static_cast<std::int64_t>(reader.little(18, 2));
    file.height = static_cast<std::int64_t>(reader.little(20, 2));
    bits = reader.little(24, 2);
  } else {
    file.width = static_cast<std::int32_t>(reader.little(18, 4));
    file.height = std::abs(
        std::int64_t{static_cast<std::int32_t>(reader.little(22, 4))});  // < 0: top row first
    bits = reader.little(28, 2);
    compression = reader.little(30, 4);
  }
  reader.check_size(file.width, file.height);
  if (bits == 0 || bits > 32) reader.damaged(c10::str(bits, " bits a pixel"));
  const bool run_lengths = compression == 1 || compression == 2;
  const std::size_t row_bytes = (static_cast<std::size_t>(file.width) * bits + 31) / 32 * 4;
  reader.range(pixels_at, run_lengths ? reader.little(34, 4)
                                      : row_bytes * static_cast<std::size_t>(file.height));
  file.bytes = bytes;
  return file;
}

}  // namespace

PictureFile inspect_picture_file(std::string_view bytes, const std::string& name) {
  if (bytes.empty()) throw InputError(c10::str("image ", name, ": the file is empty"));
  if (bytes.size() > static_cast<std::size_t>(std::numeric_limits<std::int32_t>::max())) {
    throw InputError(
        c10::str("image ", name, ": ", bytes.size(), " bytes, expected less than 2 GiB"));
  }
  if (bytes.starts_with(kPngSignature)) return inspect_png(bytes, name);
  if (bytes.starts_with("\xff\xd8\xff")) return JpegInspector(bytes, name).inspect();
  if (bytes.starts_with("RIFF") && bytes.size() >= 12 && bytes.substr(8, 4) == "WEBP")
    return inspect_webp(bytes, name);
  if (bytes.starts_with("BM")) return inspect_bmp(bytes, name);
  if (kPngSignature.starts_with(bytes) || std::string_view("\xff\xd8\xff").starts_with(bytes)) {
    throw InputError(c10::str("image ", name, ": truncated file of ", bytes.size(), " bytes"));
  }
  throw InputError(c10::str("image ", name, ": not a PNG, JPEG, WebP or BMP file"));
}

}  // namespace libvar
