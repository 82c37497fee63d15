# Compiler settings of libvar's own targets and the choice of CUDA.

set(CMAKE_CXX_STANDARD 20)
set(CMAKE_CXX_STANDARD_REQUIRED ON)
set(CMAKE_CXX_EXTENSIONS OFF)
set(CMAKE_POSITION_INDEPENDENT_CODE ON)
set(CMAKE_EXPORT_COMPILE_COMMANDS ON)
set(CMAKE_RUNTIME_OUTPUT_DIRECTORY "${PROJECT_BINARY_DIR}/bin")
set(CMAKE_LIBRARY_OUTPUT_DIRECTORY "${PROJECT_BINARY_DIR}/lib")
set(CMAKE_ARCHIVE_OUTPUT_DIRECTORY "${PROJECT_BINARY_DIR}/lib")

# CMake 3.25 knows no CUDA20 for nvcc 13, and device code needs no more than 17.
set(CMAKE_CUDA_STANDARD 17)
set(CMAKE_CUDA_STANDARD_REQUIRED ON)

# Real code for sm_80 and sm_90, and PTX of the last one for what comes after.
if(NOT DEFINED CMAKE_CUDA_ARCHITECTURES)
  set(CMAKE_CUDA_ARCHITECTURES 80-real 90)
endif()

set(LIBVAR_WITH_CUDA OFF)
if(NOT LIBVAR_CUDA STREQUAL "OFF")
  include(CheckLanguage)
  check_language(CUDA)
  if(CMAKE_CUDA_COMPILER)
    enable_language(CUDA)
    set(CMAKE_CUDA_RUNTIME_LIBRARY None)  # the one that LibTorch loads, linked by FindLibTorch
    set(LIBVAR_WITH_CUDA ON)
  elseif(LIBVAR_CUDA STREQUAL "ON")
    message(FATAL_ERROR "libvar: LIBVAR_CUDA=ON, but no CUDA compiler was found (./dev build --cuda fetches one)")
  else()
    message(STATUS "libvar: no CUDA compiler found, building for the CPU only (LIBVAR_CUDA=AUTO)")
  endif()
endif()

# Flags of a target of ours. Sources of others never get them.
function(libvar_target_options target)
  target_compile_options(${target} PRIVATE
    $<$<COMPILE_LANGUAGE:CXX>:-Wall -Wextra -Wno-unused-parameter>
    $<$<COMPILE_LANGUAGE:CUDA>:-diag-suppress=186>)
  if(LIBVAR_WERROR)
    target_compile_options(${target} PRIVATE
      $<$<COMPILE_LANGUAGE:CXX>:-Werror>
      $<$<COMPILE_LANGUAGE:CUDA>:-Werror=all-warnings>)
  endif()
  if(LIBVAR_SANITIZE)
    # GCC 12 warns of uninitialised members in the standard library itself once it is instrumented (std::regex in Catch).
    target_compile_options(${target} PRIVATE
      $<$<COMPILE_LANGUAGE:CXX>:-fsanitize=address,undefined -fno-sanitize-recover=undefined -fno-omit-frame-pointer
      -Wno-maybe-uninitialized>)
    target_link_options(${target} PRIVATE -fsanitize=address,undefined)
  endif()
endfunction()
