#include <algorithm>
#include <cctype>
#include <memory>
#include <utility>

#include "archive/module_tree.h"
#include "archive/pickle_codes.h"
#include "libvar/error.h"

namespace libvar {
namespace {

namespace op = pickle;

/// A module: its parameters and submodules by name.
struct Node {
  std::map<std::string, const PickledTensor*> parameters;
  std::map<std::string, std::unique_ptr<Node>> modules;
  std::string type;  ///< name of its class within __torch__.libvar
};

bool is_number(std::string_view part) {
  return !part.empty() && std::all_of(part.begin(), part.end(),
                                      [](unsigned char c) { return std::isdigit(c) != 0; });
}

bool is_identifier(std::string_view part) {
  const auto word = [](unsigned char c) { return std::isalnum(c) != 0 || c == '_'; };
  return !part.empty() && std::isdigit(static_cast<unsigned char>(part.front())) == 0 &&
         std::all_of(part.begin(), part.end(), word);
}

void insert(Node& root, const std::string& name, const PickledTensor& tensor) {
  Node* node = &root;
  std::size_t begin = 0;
  while (true) {
    const std::size_t end = name.find('.', begin);
    const std::string part = name.substr(begin, end == std::string::npos ? end : end - begin);
    if (!is_number(part) && !is_identifier(part)) {
      throw ArchiveError("tensor " + name +
                         ": expected a name of identifiers and numbers between dots");
    }
    const bool last = end == std::string::npos;
    if (part == "training" ||
        (last ? node->modules.count(part) : node->parameters.count(part)) != 0) {
      throw ArchiveError("tensor " + name + ": its name is that of a module too");
    }
    if (last) {
      node->parameters.emplace(part, &tensor);
      return;
    }
    auto& next = node->modules[part];
    if (next == nullptr) next = std::make_unique<Node>();
    node = next.get();
    begin = end + 1;
  }
}

/// Declares one class for each distinct set of attributes; a class stands behind those that it
/// uses.
class CodeWriter {
 public:
  std::string write(Node& root) {
    declare(root);
    return code_;
  }

 private:
  void declare(Node& node) {
    std::string body = "  __parameters__ = [";
    for (const auto& [name, tensor] : node.parameters) body += '"' + name + "\", ";
    body += "]\n  __buffers__ = []\n  training : bool\n";
    for (const auto& [name, tensor] : node.parameters) body += attribute(name, "Tensor");
    for (const auto& [name, module] : node.modules) {
      declare(*module);
      body += attribute(name, "__torch__.libvar." + module->type);
    }
    auto [found, is_new] = types_.try_emplace(body, "Module" + std::to_string(types_.size()));
    if (is_new) code_ += "class " + found->second + "(Module):\n" + body;
    node.type = found->second;
  }

  static std::string attribute(const std::string& name, const std::string& type) {
    return is_number(name) ? "  __annotations__[\"" + name + "\"] = " + type + "\n"
                           : "  " + name + " : " + type + "\n";
  }

  std::map<std::string, std::string> types_;
  std::string code_;
};

class PickleWriter {
 public:
  std::string write(const Node& root) {
    out_ = {op::kProto, 2};
    module(root);
    out_ += op::kStop;
    return std::move(out_);
  }

 private:
  void module(const Node& node) {
    global("__torch__.libvar", node.type);
    out_ += {op::kEmptyTuple, op::kNewObj, op::kEmptyDict, op::kMark};
    text("training");
    out_ += op::kNewFalse;
    for (const auto& [name, tensor] : node.parameters) {
      text(name);
      parameter(*tensor);
    }
    for (const auto& [name, child] : node.modules) {
      text(name);
      module(*child);
    }
    out_ += {op::kSetItems, op::kBuild};
  }

  void parameter(const PickledTensor& tensor) {
    global("torch._utils", "_rebuild_tensor_v2");
    out_ += {op::kMark, op::kMark};
    text("storage");
    const auto named = [&](const auto& entry) { return entry.first == tensor.dtype; };
    const auto storage = std::find_if(op::kStorages.begin(), op::kStorages.end(), named);
    if (storage == op::kStorages.end()) {
      throw ArchiveError(std::string("an archive holds no tensors of type ") +
                         c10::toString(tensor.dtype));
    }
    global("torch", storage->second);
    text(tensor.storage);
    text("cpu");
    integer(checked(tensor));
    out_ += {op::kTuple, op::kBinPersId};
    integer(tensor.offset);
    integers(tensor.shape);
    integers(tensor.strides);
    out_ += op::kNewFalse;  // requires_grad
    global("collections", "OrderedDict");
    out_ += {op::kEmptyTuple, op::kReduce, op::kTuple, op::kReduce};
  }

  static std::int64_t checked(const PickledTensor& tensor) {
    std::int64_t numel = 1;
    for (const std::int64_t size : tensor.shape) numel *= size;
    return numel;
  }

  void integers(const std::vector<std::int64_t>& values) {
    out_ += op::kMark;
    for (const std::int64_t value : values) integer(value);
    out_ += op::kTuple;
  }

  void integer(std::int64_t value) {
    if (value >= 0 && value < 256) {
      out_ += {op::kBinInt1, static_cast<char>(value)};
      return;
    }
    const bool wide = value < INT32_MIN || value > INT32_MAX;
    if (wide) {
      out_ += {op::kLong1, 8};
    } else {
      out_ += op::kBinInt;
    }
    little_endian(static_cast<std::uint64_t>(value), wide ? 8 : 4);
  }

  void text(std::string_view value) {
    out_ += op::kBinUnicode;
    little_endian(value.size(), 4);
    out_ += value;
  }

  void global(std::string_view module, std::string_view name) {
    out_ += op::kGlobal;
    out_ += module;
    out_ += '\n';
    out_ += name;
    out_ += '\n';
  }

  void little_endian(std::uint64_t value, int bytes) {
    for (int i = 0; i < bytes; ++i) out_ += static_cast<char>(value >> (8 * i));
  }

  std::string out_;
};

}  // namespace

ModuleRecords write_module_tree(const std::map<std::string, PickledTensor>& tensors) {
  Node root;
  for (const auto& [name, tensor] : tensors) insert(root, name, tensor);
  ModuleRecords records;
  records.code = CodeWriter().write(root);
  records.data_pickle = PickleWriter().write(root);
  return records;
}

}  // namespace libvar
