# The ops of kernels/ on the CPU against the double-precision oracles of reference/.
libvar_add_test(NAME ops LABELS cpu sanitize
  SOURCES
    unit/ops/attention_invariance_test.cpp
    unit/ops/attention_test.cpp
    unit/ops/chosen_build.cpp
    unit/ops/classes_test.cpp
    unit/ops/dispatch_test.cpp
    unit/ops/errors_test.cpp
    unit/ops/greedy_tokens_test.cpp
    unit/ops/norms_test.cpp
    unit/ops/redistribute_test.cpp
    unit/ops/rotary_test.cpp
    unit/ops/silu_mul_test.cpp
    unit/ops/skinny_linear_test.cpp
    unit/ops/vector_test.cpp
  LINK libvar::ops)
libvar_add_cpu_builds(test_ops unit/ops/vector_probe.cpp)
target_precompile_headers(test_ops PRIVATE <ATen/ATen.h>)
# The same tests in the builds that this processor would not choose.
foreach(build portable avx2 avx512)
  add_test(NAME ops_${build} COMMAND test_ops)
  set_tests_properties(ops_${build} PROPERTIES LABELS "cpu;sanitize" TIMEOUT 600 SKIP_REGULAR_EXPRESSION "SKIPPED"
    ENVIRONMENT "OMP_WAIT_POLICY=PASSIVE;LIBVAR_TEST_CPU_BUILD=${build}")
endforeach()

# A sanitizer's own symbols are shared, and code for testing only.
if(NOT LIBVAR_SANITIZE)
  get_property(cpu_build_objects GLOBAL PROPERTY LIBVAR_CPU_BUILD_OBJECTS)
  file(GENERATE OUTPUT "${CMAKE_CURRENT_BINARY_DIR}/cpu_build_objects.txt" CONTENT "$<JOIN:${cpu_build_objects},\n>\n")
  add_test(NAME ops_cpu_symbols COMMAND ${CMAKE_COMMAND} -DNM=${CMAKE_NM} -DOBJECTS=${CMAKE_CURRENT_BINARY_DIR}/cpu_build_objects.txt
    -P "${CMAKE_CURRENT_SOURCE_DIR}/tools/check_cpu_symbols.cmake")
  set_tests_properties(ops_cpu_symbols PROPERTIES LABELS cpu)
endif()

# The ops in Python. LIBVAR_PYTHON: an interpreter whose torch is the LibTorch of this build.
set(no_torch 1)
if(LIBVAR_PYTHON)
  execute_process(COMMAND "${LIBVAR_PYTHON}" -c "import importlib.util, sys; sys.exit(importlib.util.find_spec('torch') is None)"
    RESULT_VARIABLE no_torch OUTPUT_QUIET ERROR_QUIET)
endif()
function(add_python_ops_test name script)
  if(no_torch)
    add_test(NAME ${name} COMMAND ${CMAKE_COMMAND} -E echo "SKIPPED: LIBVAR_PYTHON names no Python with torch")
  else()
    add_test(NAME ${name} COMMAND "${LIBVAR_PYTHON}" "${script}" $<TARGET_FILE:libvar_ops>)
  endif()
  set_tests_properties(${name} PROPERTIES LABELS python TIMEOUT 600 SKIP_REGULAR_EXPRESSION "SKIPPED")
endfunction()
add_python_ops_test(ops_python "${CMAKE_CURRENT_SOURCE_DIR}/unit/ops/ops_check.py")
add_python_ops_test(ops_python_example "${PROJECT_SOURCE_DIR}/examples/python_ops/attention.py")
