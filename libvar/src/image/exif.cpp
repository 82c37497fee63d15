#include <cstdint>
#include <optional>
#include <string_view>

#include "image/picture_file.h"

namespace libvar {
namespace {

constexpr std::string_view kExifMark("Exif\0\0", 6);
constexpr std::uint32_t kOrientationTag = 0x0112;
constexpr std::uint32_t kShort = 3, kLong = 4;  // TIFF types
constexpr std::size_t kEntryBytes = 12;

/// Unsigned numbers of either byte order; nothing past the end.
class TiffReader {
 public:
  TiffReader(std::string_view bytes, bool big_endian) : bytes_(bytes), big_endian_(big_endian) {}

  std::optional<std::uint32_t> number(std::size_t offset, std::size_t size) const {
    if (offset > bytes_.size() || size > bytes_.size() - offset) return std::nullopt;
    std::uint32_t value = 0;
    for (std::size_t i = 0; i < size; ++i) {
      const auto byte =
          static_cast<unsigned char>(bytes_[offset + (big_endian_ ? i : size - 1 - i)]);
      value = value << 8 | byte;
    }
    return value;
  }

 private:
  std::string_view bytes_;
  bool big_endian_;
};

}  // namespace

int exif_orientation(std::string_view tiff) {
  if (tiff.starts_with(kExifMark)) tiff.remove_prefix(kExifMark.size());
  const bool big_endian = tiff.starts_with("MM");
  if (!big_endian && !tiff.starts_with("II")) return 1;
  const TiffReader reader(tiff, big_endian);
  const auto directory = reader.number(4, 4);
  if (!directory) return 1;
  const auto entries = reader.number(*directory, 2);
  for (std::uint32_t i = 0; entries && i < *entries; ++i) {
    const std::size_t entry = std::size_t{*directory} + 2 + kEntryBytes * i;
    const auto tag = reader.number(entry, 2);
    if (!tag) break;
    if (*tag != kOrientationTag) continue;
    const auto type = reader.number(entry + 2, 2);
    if (type != kShort && type != kLong) break;
    const auto value = reader.number(entry + 8, type == kShort ? 2 : 4);
    return value && *value >= 1 && *value <= 8 ? static_cast<int>(*value) : 1;
  }
  return 1;
}

}  // namespace libvar
