#include <algorithm>
#include <cstring>
#include <deque>
#include <optional>
#include <unordered_map>
#include <utility>
#include <variant>

#include "archive/module_tree.h"
#include "archive/pickle_codes.h"
#include "libvar/error.h"

namespace libvar {
namespace {

namespace op = pickle;

struct Value;
using Ref = const Value*;

struct None {};

struct Mark {};

struct Global {
  std::string module;
  std::string name;
};

struct Sequence {  // tuple or list
  std::vector<Ref> items;
};

struct Dict {
  std::vector<std::pair<Ref, Ref>> items;
};

struct Object {
  std::string type;
  Ref attributes = nullptr;
};

struct Storage {
  std::string type;
  std::string key;
};

struct Tensor {
  PickledTensor tensor;
  std::string storage_type;
};

struct Value {
  std::variant<None, Mark, bool, std::int64_t, double, std::string, Global, Sequence, Dict, Object,
               Storage, Tensor>
      data;
};

/// A stack machine for the opcodes of pickle_codes.h. Values live in one arena, so that no pickle
/// can make a cycle that leaks or a nesting that recurses; their number is bounded by the length of
/// the pickle.
constexpr std::size_t kMaxRank = 8;

class Reader {
 public:
  Reader(std::string_view bytes, std::string where) : bytes_(bytes), where_(std::move(where)) {}

  Ref read() {
    while (true) {
      const char code = static_cast<char>(byte());
      if (code == op::kStop) break;
      if (!step_value(code) && !step_container(code) && !step_memo(code)) {
        fail("opcode " + std::to_string(static_cast<unsigned char>(code)) +
             " is not one of a module of tensors");
      }
    }
    return pop();
  }

 private:
  [[noreturn]] void fail(const std::string& why) const {
    throw ArchiveError(where_ + ": not understood at byte " + std::to_string(position_) + ": " +
                       why);
  }

  bool step_value(char code) {
    switch (code) {
      case op::kProto:
        if (byte() != 2) fail("expected pickle protocol 2");
        return true;
      case op::kNone:
        return push(None{});
      case op::kNewTrue:
        return push(true);
      case op::kNewFalse:
        return push(false);
      case op::kBinInt1:
        return push(integer(1));
      case op::kBinInt2:
        return push(integer(2));
      case op::kBinInt:
        return push(std::int64_t{static_cast<std::int32_t>(integer(4))});
      case op::kLong1:
        return push(long_integer());
      case op::kBinFloat:
        take(8);
        return push(0.0);  // an attribute that is no tensor
      case op::kBinUnicode:
        return push(std::string(take(static_cast<std::size_t>(integer(4)))));
      case op::kGlobal: {
        std::string module = line();
        return push(Global{std::move(module), line()});
      }
      default:
        return false;
    }
  }

  bool step_container(char code) {
    switch (code) {
      case op::kMark:
        return push(Mark{});
      case op::kEmptyTuple:
      case op::kEmptyList:
        return push(Sequence{});
      case op::kTuple:
        return push(Sequence{pop_to_mark()});
      case op::kTuple1:
        return push_tuple(1);
      case op::kTuple2:
        return push_tuple(2);
      case op::kTuple3:
        return push_tuple(3);
      case op::kEmptyDict:
        return push(Dict{});
      case op::kSetItem:
        return set_items(pop_many(2));
      case op::kSetItems:
        return set_items(pop_to_mark());
      case op::kAppend:
        return append(pop_many(1));
      case op::kAppends:
        return append(pop_to_mark());
      case op::kNewObj:
        return new_object();
      case op::kBuild:
        return build();
      case op::kReduce:
        return reduce();
      case op::kBinPersId:
        return persistent_id();
      default:
        return false;
    }
  }

  bool step_memo(char code) {
    switch (code) {
      case op::kBinPut:
        memo_[integer(1)] = top();
        return true;
      case op::kLongBinPut:
        memo_[integer(4)] = top();
        return true;
      case op::kBinGet:
        return recall(integer(1));
      case op::kLongBinGet:
        return recall(integer(4));
      default:
        return false;
    }
  }

  bool recall(std::int64_t index) {
    const auto found = memo_.find(index);
    if (found == memo_.end()) fail("nothing is stored under " + std::to_string(index));
    stack_.push_back(found->second);
    return true;
  }

  bool push_tuple(std::size_t count) { return push(Sequence{pop_many(count)}); }

  bool new_object() {
    expect<Sequence>(pop(), "the arguments of a class");
    const Global& type = expect<Global>(pop(), "a class");
    // A class gives nothing but the place of its attributes; it is never looked up.
    if (type.module.rfind("__torch__", 0) != 0) refuse(type);
    return push(Object{type.module + "." + type.name, nullptr});
  }

  bool build() {
    const Ref attributes = pop();
    expect<Dict>(attributes, "the attributes of a module");
    const Ref object = top();
    expect<Object>(object, "a module");
    std::get<Object>(const_cast<Value*>(object)->data).attributes = attributes;
    return true;
  }

  bool reduce() {
    const Sequence& arguments = expect<Sequence>(pop(), "the arguments of a function");
    const Global& function = expect<Global>(pop(), "a function");
    if (function.module == "collections" && function.name == "OrderedDict" &&
        arguments.items.empty()) {
      return push(Dict{});
    }
    if (function.module == "torch._utils" && function.name == "_rebuild_tensor_v2")
      return rebuild_tensor(arguments);
    refuse(function);
  }

  bool rebuild_tensor(const Sequence& arguments) {
    if (arguments.items.size() < 4) fail("a tensor needs storage, offset, sizes and strides");
    const Storage& storage = expect<Storage>(arguments.items[0], "a storage");
    Tensor tensor;
    tensor.storage_type = storage.type;
    tensor.tensor.storage = storage.key;
    tensor.tensor.offset = expect<std::int64_t>(arguments.items[1], "a storage offset");
    tensor.tensor.shape = integers(arguments.items[2]);
    tensor.tensor.strides = integers(arguments.items[3]);
    return push(std::move(tensor));
  }

  bool persistent_id() {
    const Sequence& id = expect<Sequence>(pop(), "a storage");
    if (id.items.size() != 5 ||
        expect<std::string>(id.items[0], "a kind of storage") != "storage") {
      fail("expected a storage of five parts");
    }
    const Global& type = expect<Global>(id.items[1], "a storage class");
    if (type.module != "torch") refuse(type);
    return push(Storage{type.name, expect<std::string>(id.items[2], "the name of a storage")});
  }

  [[noreturn]] void refuse(const Global& global) const {
    fail("it asks for " + global.module + "." + global.name + ", which no weights need");
  }

  bool set_items(const std::vector<Ref>& items) {
    const Ref target = top();
    expect<Dict>(target, "a dictionary");
    if (items.size() % 2 != 0) fail("a key without a value");
    auto& dict = std::get<Dict>(const_cast<Value*>(target)->data).items;
    for (std::size_t i = 0; i < items.size(); i += 2) dict.emplace_back(items[i], items[i + 1]);
    return true;
  }

  bool append(const std::vector<Ref>& items) {
    const Ref target = top();
    expect<Sequence>(target, "a list");
    auto& list = std::get<Sequence>(const_cast<Value*>(target)->data).items;
    list.insert(list.end(), items.begin(), items.end());
    return true;
  }

  template <typename T>
  const T& expect(Ref value, const char* what) const {
    const T* found = std::get_if<T>(&value->data);
    if (found == nullptr) fail(std::string("expected ") + what);
    return *found;
  }

  std::vector<std::int64_t> integers(Ref value) const {
    std::vector<std::int64_t> out;
    const auto& items = expect<Sequence>(value, "a shape").items;
    if (items.size() > kMaxRank) fail("expected a shape of few dimensions");
    for (const Ref item : items) {
      out.push_back(expect<std::int64_t>(item, "a size"));
    }
    return out;
  }

  template <typename T>
  bool push(T&& data) {
    values_.push_back(Value{std::forward<T>(data)});
    stack_.push_back(&values_.back());
    return true;
  }

  Ref top() const {
    if (stack_.empty()) fail("nothing on the stack");
    return stack_.back();
  }

  Ref pop() {
    const Ref value = top();
    stack_.pop_back();
    return value;
  }

  std::vector<Ref> pop_many(std::size_t count) {
    if (stack_.size() < count) fail("nothing on the stack");
    std::vector<Ref> out(stack_.end() - static_cast<std::ptrdiff_t>(count), stack_.end());
    stack_.resize(stack_.size() - count);
    return out;
  }

  std::vector<Ref> pop_to_mark() {
    const auto is_mark = [](Ref value) { return std::holds_alternative<Mark>(value->data); };
    const auto mark = std::find_if(stack_.rbegin(), stack_.rend(), is_mark);
    if (mark == stack_.rend()) fail("no mark on the stack");
    std::vector<Ref> out(mark.base(), stack_.end());
    stack_.resize(stack_.size() - out.size() - 1);
    return out;
  }

  unsigned char byte() { return static_cast<unsigned char>(take(1).front()); }

  std::string_view take(std::size_t count) {
    if (count > bytes_.size() - position_) fail("it ends too early");
    const std::string_view out = bytes_.substr(position_, count);
    position_ += count;
    return out;
  }

  std::string line() {
    const std::size_t end = bytes_.find('\n', position_);
    if (end == std::string_view::npos) fail("it ends too early");
    std::string out(take(end - position_));
    take(1);
    return out;
  }

  std::int64_t integer(int bytes) {
    std::uint64_t value = 0;
    for (int i = 0; i < bytes; ++i) value |= std::uint64_t{byte()} << (8 * i);
    return static_cast<std::int64_t>(value);
  }

  std::int64_t long_integer() {
    const int bytes = byte();
    if (bytes > 8) fail("an integer of more than 64 bits");
    const std::int64_t value = integer(bytes);
    const bool negative = bytes > 0 && bytes < 8 && ((value >> (8 * bytes - 1)) & 1) != 0;
    return negative ? value - (std::int64_t{1} << (8 * bytes)) : value;
  }

  std::string_view bytes_;
  std::string where_;
  std::size_t position_ = 0;
  std::deque<Value> values_;
  std::vector<Ref> stack_;
  std::unordered_map<std::int64_t, Ref> memo_;
};

/// Walks the tree. A module may stand at two places, so depth and number of visits are bounded.
class Flattener {
 public:
  explicit Flattener(std::string where) : where_(std::move(where)) {}

  std::map<std::string, PickledTensor> flatten(Ref root) {
    const Object* module = std::get_if<Object>(&root->data);
    if (module == nullptr) throw ArchiveError(where_ + ": expected a module, found something else");
    visit(*module, "", 0);
    return std::move(out_);
  }

 private:
  static constexpr int kMaxDepth = 64;
  static constexpr std::size_t kMaxName = 256;
  static constexpr std::size_t kMaxVisits = 100'000;

  void visit(const Object& module, const std::string& prefix, int depth) {
    if (depth > kMaxDepth || ++visits_ > kMaxVisits)
      throw ArchiveError(where_ + ": too many modules within modules");
    if (module.attributes == nullptr) return;
    for (const auto& [key, value] : std::get<Dict>(module.attributes->data).items) {
      const std::string* name = std::get_if<std::string>(&key->data);
      if (name == nullptr || name->size() > kMaxName) {
        throw ArchiveError(where_ + ": expected names of attributes that are short texts");
      }
      if (const auto* child = std::get_if<Object>(&value->data)) {
        visit(*child, prefix + *name + ".", depth + 1);
      } else if (const auto* tensor = std::get_if<Tensor>(&value->data)) {
        add(prefix + *name, *tensor);
      }
    }
  }

  void add(const std::string& name, const Tensor& tensor) {
    const auto named = [&](const auto& entry) { return entry.second == tensor.storage_type; };
    const auto storage = std::find_if(op::kStorages.begin(), op::kStorages.end(), named);
    if (storage == op::kStorages.end()) {
      throw ArchiveError(where_ + ": tensor " + name +
                         ": expected float32, float16, bfloat16 or int8, found torch." +
                         tensor.storage_type);
    }
    if (++visits_ > kMaxVisits) throw ArchiveError(where_ + ": too many tensors");
    PickledTensor out = tensor.tensor;
    out.dtype = storage->first;
    if (!out_.emplace(name, std::move(out)).second)
      throw ArchiveError(where_ + ": tensor " + name + " stands twice");
  }

  std::string where_;
  std::size_t visits_ = 0;
  std::map<std::string, PickledTensor> out_;
};

}  // namespace

std::map<std::string, PickledTensor> read_module_tree(std::string_view pickle,
                                                      const std::string& where) {
  Reader reader(pickle, where);
  return Flattener(where).flatten(reader.read());
}

}  // namespace libvar
