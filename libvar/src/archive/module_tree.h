#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <map>
#include <string>
#include <string_view>
#include <vector>

namespace libvar {

/// A tensor as data.pkl describes it.
struct PickledTensor {
  std::string storage;  ///< record data/<storage>
  at::ScalarType dtype = at::kFloat;
  std::int64_t offset = 0;  ///< of the first element within the storage
  std::vector<std::int64_t> shape;
  std::vector<std::int64_t> strides;
};

/// What a TorchScript archive says of a tree of modules that hold parameters and no code.
struct ModuleRecords {
  std::string data_pickle;  ///< data.pkl
  std::string code;         ///< code/__torch__/libvar.py
};

/// Writes the module tree of tensors whose dotted names are paths in it; contiguous tensors, each
/// its own storage.
/// @throws ArchiveError  a name is no path of identifiers and numbers, or is a tensor and a module
/// at once
ModuleRecords write_module_tree(const std::map<std::string, PickledTensor>& tensors);

/// Reads data.pkl: the tensors of the tree by dotted name. Understands what describes modules of
/// tensors and nothing else; no code is run, whatever the pickle says.
/// @throws ArchiveError  damaged, or asks for what is not needed for tensors
std::map<std::string, PickledTensor> read_module_tree(std::string_view pickle,
                                                      const std::string& where);

}  // namespace libvar
