# The CUDA kernels as fibers on the CPU: the .cuh files of kernels/cuda, compiled by g++ against the emulator's headers.
# Without LibTorch, so that a change of a kernel is tried in seconds.
add_library(simt STATIC simt/emulator/fiber.cpp simt/emulator/matrix.cpp simt/emulator/simt.cpp)
target_include_directories(simt PUBLIC simt/emulator simt/emulator/include ${PROJECT_SOURCE_DIR}/kernels
                                       ${PROJECT_SOURCE_DIR}/kernels/include)
libvar_target_options(simt)

libvar_add_test(NAME simt LABELS cpu simt sanitize
  SOURCES simt/attention_kernels_test.cpp simt/attention_test.cpp simt/emulator_matrix_test.cpp simt/emulator_test.cpp simt/greedy_tokens_test.cpp simt/norms_test.cpp simt/redistribute_test.cpp simt/rotary_test.cpp simt/silu_mul_test.cpp simt/skinny_linear_test.cpp
  LINK simt)
# A GPU refuses a vector that is not aligned; the CPU would take it.
if(NOT LIBVAR_SANITIZE)
  target_compile_options(test_simt PRIVATE -fsanitize=alignment -fno-sanitize-recover=alignment)
  target_link_options(test_simt PRIVATE -fsanitize=alignment)
endif()

# The ops on a GPU against the ops on the CPU. Skipped loudly without a GPU; LIBVAR_REQUIRE_CUDA=1 makes that a failure.
if(LIBVAR_WITH_CUDA)
  libvar_add_test(NAME cuda LABELS cuda SOURCES unit/ops/cuda_pointwise_test.cpp unit/ops/cuda_test.cpp
    LINK libvar::ops LibTorch::torch_cuda)
  set_tests_properties(cuda PROPERTIES SKIP_REGULAR_EXPRESSION "cuda tests skipped")
endif()

# Each seeded fault of tests/mutation still has its place in the kernels. Running them is ./dev mutants: it takes minutes.
find_program(LIBVAR_SYSTEM_PYTHON python3 REQUIRED)
add_test(NAME mutant_places COMMAND "${LIBVAR_SYSTEM_PYTHON}" "${CMAKE_CURRENT_SOURCE_DIR}/mutation/run.py" --check)
set_tests_properties(mutant_places PROPERTIES LABELS cpu)

# Registers, stack and spills of every kernel against tests/cuda_resources/budget.json, for this build's architectures.
if(LIBVAR_WITH_CUDA)
  string(REGEX REPLACE "-(real|virtual)" "" architectures "${CMAKE_CUDA_ARCHITECTURES}")
  string(REPLACE ";" "," architectures "${architectures}")
  add_test(NAME cuda_resources COMMAND "${LIBVAR_SYSTEM_PYTHON}" "${CMAKE_CURRENT_SOURCE_DIR}/cuda_resources/check.py"
    --nvcc "${CMAKE_CUDA_COMPILER}" --architectures "${architectures}")
  set_tests_properties(cuda_resources PROPERTIES LABELS cuda-build TIMEOUT 600)
endif()
