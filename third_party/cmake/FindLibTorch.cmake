# Finds LibTorch (the PyPI wheel or a LibTorch zip) without TorchConfig.cmake, which stops where the wheel was built with
# CUDA and the machine has no toolkit.
#
# In:   LibTorch_ROOT or TORCH_DIR (CMake variable or environment): the folder that holds include/ and lib/
#       LIBVAR_WITH_CUDA: also make the CUDA target, and fail where its libraries are missing
# Out:  LibTorch::torch       headers, libc10, libtorch_cpu
#       LibTorch::torch_cuda  the above with libc10_cuda and libtorch_cuda (with LIBVAR_WITH_CUDA)
#       LibTorch_FOUND, LibTorch_VERSION, LibTorch_DIR_FOUND

set(_hints ${LibTorch_ROOT} ${TORCH_DIR} $ENV{LibTorch_ROOT} $ENV{TORCH_DIR} ${LIBVAR_LIBTORCH_HINT})
find_path(LibTorch_INCLUDE_DIR ATen/ATen.h HINTS ${_hints} PATH_SUFFIXES include)
find_library(LibTorch_C10_LIBRARY c10 HINTS ${_hints} PATH_SUFFIXES lib)
find_library(LibTorch_CPU_LIBRARY torch_cpu HINTS ${_hints} PATH_SUFFIXES lib)
mark_as_advanced(LibTorch_INCLUDE_DIR LibTorch_C10_LIBRARY LibTorch_CPU_LIBRARY)
set(_required LibTorch_CPU_LIBRARY LibTorch_C10_LIBRARY LibTorch_INCLUDE_DIR)
if(LIBVAR_WITH_CUDA)
  find_library(LibTorch_CUDA_LIBRARY torch_cuda HINTS ${_hints} PATH_SUFFIXES lib)
  find_library(LibTorch_C10_CUDA_LIBRARY c10_cuda HINTS ${_hints} PATH_SUFFIXES lib)
  # The runtime that libtorch_cuda itself loads: from the wheel's neighbours, else the toolkit's.
  # FindCUDAToolkit of CMake 3.25 stops with an error on the PyPI toolkit, so it is not used.
  find_library(LibTorch_CUDART_LIBRARY NAMES libcudart.so.13 cudart
    HINTS "${LibTorch_INCLUDE_DIR}/../../nvidia/cu13/lib" ${CMAKE_CUDA_IMPLICIT_LINK_DIRECTORIES})
  mark_as_advanced(LibTorch_CUDA_LIBRARY LibTorch_C10_CUDA_LIBRARY LibTorch_CUDART_LIBRARY)
  list(APPEND _required LibTorch_CUDA_LIBRARY LibTorch_C10_CUDA_LIBRARY LibTorch_CUDART_LIBRARY)
endif()

if(LibTorch_INCLUDE_DIR AND EXISTS "${LibTorch_INCLUDE_DIR}/torch/headeronly/version.h")
  file(STRINGS "${LibTorch_INCLUDE_DIR}/torch/headeronly/version.h" _lines REGEX "#define TORCH_VERSION_(MAJOR|MINOR|PATCH)")
  string(REGEX REPLACE ".*MAJOR ([0-9]+).*MINOR ([0-9]+).*PATCH ([0-9]+).*" "\\1.\\2.\\3" LibTorch_VERSION "${_lines}")
endif()

include(FindPackageHandleStandardArgs)
find_package_handle_standard_args(LibTorch REQUIRED_VARS ${_required} VERSION_VAR LibTorch_VERSION
  REASON_FAILURE_MESSAGE "set TORCH_DIR to the folder of LibTorch that holds include/ and lib/ (python: os.path.dirname(torch.__file__))")

if(LibTorch_FOUND)
  cmake_path(GET LibTorch_INCLUDE_DIR PARENT_PATH LibTorch_DIR_FOUND)
  if(NOT TARGET LibTorch::torch)
    add_library(LibTorch::c10 SHARED IMPORTED)
    set_target_properties(LibTorch::c10 PROPERTIES IMPORTED_LOCATION "${LibTorch_C10_LIBRARY}")
    add_library(LibTorch::torch SHARED IMPORTED)
    set_target_properties(LibTorch::torch PROPERTIES
      IMPORTED_LOCATION "${LibTorch_CPU_LIBRARY}"
      INTERFACE_INCLUDE_DIRECTORIES "${LibTorch_INCLUDE_DIR};${LibTorch_INCLUDE_DIR}/torch/csrc/api/include"
      INTERFACE_SYSTEM_INCLUDE_DIRECTORIES "${LibTorch_INCLUDE_DIR};${LibTorch_INCLUDE_DIR}/torch/csrc/api/include"
      INTERFACE_COMPILE_FEATURES cxx_std_17
      INTERFACE_LINK_LIBRARIES LibTorch::c10)
  endif()
  if(LIBVAR_WITH_CUDA AND NOT TARGET LibTorch::torch_cuda)
    add_library(LibTorch::cudart SHARED IMPORTED)
    set_target_properties(LibTorch::cudart PROPERTIES IMPORTED_LOCATION "${LibTorch_CUDART_LIBRARY}"
      INTERFACE_INCLUDE_DIRECTORIES "${CMAKE_CUDA_TOOLKIT_INCLUDE_DIRECTORIES}")
    add_library(LibTorch::c10_cuda SHARED IMPORTED)
    set_target_properties(LibTorch::c10_cuda PROPERTIES IMPORTED_LOCATION "${LibTorch_C10_CUDA_LIBRARY}"
      INTERFACE_LINK_LIBRARIES "LibTorch::c10;LibTorch::cudart")
    add_library(LibTorch::torch_cuda SHARED IMPORTED)
    set_target_properties(LibTorch::torch_cuda PROPERTIES IMPORTED_LOCATION "${LibTorch_CUDA_LIBRARY}"
      INTERFACE_LINK_LIBRARIES "LibTorch::torch;LibTorch::c10_cuda")
  endif()
endif()
