#include "archive/page_fetcher.h"

#include <ATen/ops/randint.h>
#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <chrono>
#include <string>
#include <thread>
#include <vector>

#include "catch.h"
#include "temporary_folder.h"

using namespace libvar;
using namespace libvar::testing;

namespace {

/// Whether this system reads pages when it is asked to.
bool can_populate() {
  constexpr int kPopulateRead = 22;  // MADV_POPULATE_READ: Linux 5.14
  const auto page = static_cast<std::size_t>(::sysconf(_SC_PAGESIZE));
  void* const probe = ::mmap(nullptr, page, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  const bool result = probe != MAP_FAILED && ::madvise(probe, page, kPopulateRead) == 0;
  ::munmap(probe, page);
  return result;
}

/// Pages that the system keeps of a file leave memory.
void drop_pages(const std::string& path) {
  const int descriptor = ::open(path.c_str(), O_RDONLY);
  REQUIRE(descriptor >= 0);
  ::fsync(descriptor);
  ::posix_fadvise(descriptor, 0, 0, POSIX_FADV_DONTNEED);
  ::close(descriptor);
}

/// Pages of a tensor that are not in memory.
std::ptrdiff_t missing_pages(const at::Tensor& view) {
  const auto page = static_cast<std::uintptr_t>(::sysconf(_SC_PAGESIZE));
  const auto data = reinterpret_cast<std::uintptr_t>(view.const_data_ptr());
  const std::uintptr_t begin = data / page * page, bytes = data + view.nbytes() - begin;
  std::vector<unsigned char> present((bytes + page - 1) / page);
  if (::mincore(reinterpret_cast<void*>(begin), bytes, present.data()) != 0) return -1;
  return std::count_if(present.begin(), present.end(), [](auto byte) { return (byte & 1) == 0; });
}

}  // namespace

TEST_CASE("pages of mapped tensors are there when they are fetched, in any order", "[storage]") {
  if (!can_populate()) {
    WARN("this system fetches no pages on request");
    return;
  }
  const TemporaryFolder folder;
  const std::string path = (folder / "weights").string();
  constexpr std::int64_t kBytes = (std::int64_t{48} << 20) + 1234;  // no whole number of pages
  const at::Tensor values = at::randint(256, {kBytes}, at::kByte);
  write_bytes(path, {static_cast<const char*>(values.const_data_ptr()), std::size_t{kBytes}});
  drop_pages(path);
  const auto file = MappedFile::open(path);
  const auto view = [&](std::int64_t begin, std::int64_t end) {
    return tensor_view(file, static_cast<std::uint64_t>(begin), {end - begin}, at::kByte);
  };
  INFO(missing_pages(view(0, kBytes)) << " pages of the file were missing");  // 0 on some systems
  PageFetcher fetcher(file);
  const std::vector<std::array<std::int64_t, 2>> parts = {
      {kBytes - 1'000'000, kBytes}, {kBytes, kBytes}, {20'000'007, 30'000'000}, {7, 20'000'007}};
  for (const auto [begin, end] : parts) {
    CAPTURE(begin, end);
    const at::Tensor part = view(begin, end);
    fetcher.fetch(part);
    CHECK((begin == end || missing_pages(part) == 0));
    CHECK(part.equal(values.slice(0, begin, end)));
  }
}

TEST_CASE("the disk goes on behind a fetched tensor, and behind the next", "[storage]") {
  const TemporaryFolder folder;
  const std::string path = (folder / "weights").string();
  constexpr std::int64_t kMegabyte = std::int64_t{1} << 20;
  write_bytes(path, std::string(std::size_t{40 * kMegabyte}, 'w'));
  drop_pages(path);
  const auto file = MappedFile::open(path);
  const auto view = [&](std::int64_t begin, std::int64_t end) {
    return tensor_view(file, static_cast<std::uint64_t>(begin), {end - begin}, at::kByte);
  };
  const auto comes = [&](const at::Tensor& rest) {
    for (int wait = 0; wait < 2'000 && missing_pages(rest) > 0; ++wait)
      std::this_thread::sleep_for(std::chrono::milliseconds(10));
    return missing_pages(rest) == 0;
  };
  PageFetcher fetcher(file, 20 * kMegabyte);
  fetcher.fetch(view(7, kMegabyte + 7));  // no tensor begins or ends with a page
  CHECK(comes(view(kMegabyte, 21 * kMegabyte)));
  fetcher.fetch(view(kMegabyte + 7, 3 * kMegabyte + 7));
  CHECK(comes(view(21 * kMegabyte, 23 * kMegabyte)));
}
