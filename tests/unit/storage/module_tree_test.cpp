#include "archive/module_tree.h"

#include "catch.h"
#include "libvar/error.h"
#include "unit/storage/tiny_checkpoint.h"

using namespace libvar;
using namespace libvar::testing;
using Catch::Contains;

namespace {

using Tree = std::map<std::string, PickledTensor>;

Tree sample() {
  return {{"a.weight", {"0", at::kHalf, 0, {2, 300}, {300, 1}}},
          {"layers.0.weight", {"1", at::kFloat, 0, {70000}, {1}}},
          {"layers.1.weight", {"2", at::kBFloat16, 0, {}, {}}},
          {"top", {"3", at::kFloat, 0, {std::int64_t{1} << 33}, {1}}}};
}

std::string error_of(const std::string& pickle) {
  return message_of<ArchiveError>([&] { read_module_tree(pickle, "data.pkl"); });
}

}  // namespace

TEST_CASE("a module tree comes back as it was written", "[module_tree]") {
  const Tree read = read_module_tree(write_module_tree(sample()).data_pickle, "data.pkl");
  REQUIRE(read.size() == 4);
  for (const auto& [name, tensor] : sample()) {
    INFO(name);
    const PickledTensor& found = read.at(name);
    REQUIRE(found.storage == tensor.storage);
    REQUIRE(found.dtype == tensor.dtype);
    REQUIRE(found.shape == tensor.shape);
    REQUIRE(found.strides == tensor.strides);
    REQUIRE(found.offset == 0);
  }
}

TEST_CASE("modules of the same attributes share a class, and classes hold no code",
          "[module_tree]") {
  const std::string code = write_module_tree(sample()).code;
  // weight; layers {0, 1}; the root
  CHECK_THAT(code, Contains("class Module0(Module)") && Contains("class Module2(Module)") &&
                       !Contains("Module3"));
  CHECK_THAT(code,
             Contains("__annotations__[\"0\"] = __torch__.libvar.Module0") && !Contains("def"));
}

TEST_CASE("names that are no paths of modules are refused", "[module_tree]") {
  const PickledTensor tensor{"0", at::kFloat, 0, {1}, {1}};
  for (const char* name : {"", ".", "a..b", "a.", "a b", "1x", "a\"b", "a\nb", "training"}) {
    INFO(name);
    CHECK_THROWS_AS(write_module_tree({{name, tensor}}), ArchiveError);
  }
  CHECK_THAT(message_of<ArchiveError>([&] {
               write_module_tree({{"a", tensor}, {"a.b", tensor}});
             }),
             Contains("tensor a.b: its name is that of a module too"));
}

TEST_CASE("a pickle that asks for anything but tensors is refused", "[module_tree]") {
  using namespace std::string_literals;
  CHECK_THAT(error_of("\x80\x02"s + "cposix\nsystem\n(X\x02\0\0\0lstR."s),
             Contains("it asks for posix.system"));
  CHECK_THAT(error_of("\x80\x02"s + "cbuiltins\neval\n)\x81."s),
             Contains("it asks for builtins.eval"));
  CHECK_THAT(error_of("\x80\x02"s + "ctorch.jit._pickle\nbuild_intlist\n)R."s),
             Contains("it asks for torch.jit._pickle"));
  CHECK_THAT(error_of("\x80\x02(t."s), Contains("expected a module"));
  CHECK_THAT(error_of("\x80\x04."s), Contains("expected pickle protocol 2"));
  CHECK_THAT(error_of("\x80\x02i."s), Contains("opcode 105"));
  CHECK_THAT(error_of(""), Contains("it ends too early"));
  // A module that holds itself.
  CHECK_THAT(error_of("\x80\x02"s + "c__torch__\nA\n)\x81q\x01}X\x01\0\0\0ah\x01sb."s),
             Contains("too many modules"));
  // A list that holds itself twice at each of many levels costs no more than its bytes.
  CHECK_NOTHROW(read_module_tree(
      "\x80\x02"s + "c__torch__\nA\n)\x81}X\x01\0\0\0a]q\x01(h\x01h\x01"s + "esb.", "data.pkl"));
  auto wide = sample();
  std::string pickle = write_module_tree(wide).data_pickle;
  pickle.replace(pickle.find("HalfStorage"), 11, "LongStorage");
  CHECK_THAT(
      error_of(pickle),
      Contains(
          "tensor a.weight: expected float32, float16, bfloat16 or int8, found torch.LongStorage"));
}

TEST_CASE("no change of a pickle's bytes does worse than an error", "[module_tree]") {
  const std::string pickle = write_module_tree(sample()).data_pickle;
  int refused = 0;
  for (std::size_t size = 0; size < pickle.size(); ++size) {
    CHECK_THROWS_AS(read_module_tree(pickle.substr(0, size), "data.pkl"), ArchiveError);
  }
  for (std::size_t i = 0; i < pickle.size(); ++i) {
    for (const int flip : {1, 2, 4, 16, 64, 128, 255}) {
      std::string changed = pickle;
      changed[i] = static_cast<char>(changed[i] ^ flip);
      try {
        read_module_tree(changed, "data.pkl");
      } catch (const ArchiveError&) {
        ++refused;
      }
    }
  }
  CHECK(refused > static_cast<int>(pickle.size()));
}
