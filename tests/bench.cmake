# The benchmarks as programs: they run at small sizes, a wrong output stops them, their page says what the files say.
add_test(NAME bench_kernels COMMAND bench_kernels --tiny --device=cpu --rounds=2)
set_tests_properties(bench_kernels PROPERTIES FAIL_REGULAR_EXPRESSION "FAILED;left out")
add_test(NAME bench_kernels_cuda_grid COMMAND bench_kernels --tiny --device=cpu --grid=cuda --rounds=1)
set_tests_properties(bench_kernels_cuda_grid PROPERTIES FAIL_REGULAR_EXPRESSION "FAILED;left out")
# Spoilt outputs of libvar are found in each of the ops that have an output to check.
foreach(op attention layer redistribute rms_norm skinny_linear skinny_swiglu)
  add_test(NAME bench_kernels_finds_wrong_${op}
    COMMAND bench_kernels --tiny --device=cpu --grid=cuda --rounds=1 --break-libvar --benchmark_filter=^${op}/)
  set_tests_properties(bench_kernels_finds_wrong_${op} PROPERTIES
    PASS_REGULAR_EXPRESSION "FAILED: libvar: output off by" FAIL_REGULAR_EXPRESSION "A/A spread")
endforeach()
set_tests_properties(bench_kernels bench_kernels_cuda_grid bench_kernels_finds_wrong_attention bench_kernels_finds_wrong_layer
  bench_kernels_finds_wrong_redistribute bench_kernels_finds_wrong_rms_norm bench_kernels_finds_wrong_skinny_linear
  bench_kernels_finds_wrong_skinny_swiglu
  PROPERTIES LABELS cpu TIMEOUT 600 ENVIRONMENT "OMP_NUM_THREADS=1;OMP_WAIT_POLICY=PASSIVE")
# Whole decoders beside transformers, at small sizes: outputs are compared with and without VAR.
if(LIBVAR_PYTHON)
  add_test(NAME bench_model COMMAND "${LIBVAR_PYTHON}" "${PROJECT_SOURCE_DIR}/bench/model/bench_model.py"
    --module $<TARGET_FILE:bench_model> --device cpu --dtype fp32 --quick)
  add_test(NAME bench_model_sequences COMMAND "${LIBVAR_PYTHON}" "${PROJECT_SOURCE_DIR}/bench/model/bench_model.py"
    --module $<TARGET_FILE:bench_model> --device cpu --dtype fp32 --quick --shapes internvl2-8b --sequences 1 3)
  set_tests_properties(bench_model bench_model_sequences PROPERTIES LABELS python TIMEOUT 600 SKIP_REGULAR_EXPRESSION "SKIPPED"
    ENVIRONMENT "OMP_NUM_THREADS=1;OMP_WAIT_POLICY=PASSIVE")
endif()
if(TARGET bench_load)
  add_test(NAME bench_load COMMAND bench_load "${PROJECT_SOURCE_DIR}/examples/demo_model/demo.pt" --rounds 1)
  set_tests_properties(bench_load PROPERTIES LABELS cpu TIMEOUT 60 PASS_REGULAR_EXPRESSION "load/cpu/disk.*read / map ")
endif()
find_program(LIBVAR_SYSTEM_PYTHON python3 REQUIRED)
if(TARGET var)
  add_test(NAME bench_ask COMMAND "${LIBVAR_SYSTEM_PYTHON}" "${PROJECT_SOURCE_DIR}/bench/model/ask_model.py"
    --var $<TARGET_FILE:var> --archive fp32 "${PROJECT_SOURCE_DIR}/examples/demo_model/demo.pt" --runs 1 --new-tokens 2)
  set_tests_properties(bench_ask PROPERTIES LABELS cpu TIMEOUT 60 PASS_REGULAR_EXPRESSION "ask/cpu/fp32/copy")
endif()

# Written by hand, a number of docs/benchmarks.md could say anything.
add_test(NAME bench_page COMMAND "${LIBVAR_SYSTEM_PYTHON}" "${PROJECT_SOURCE_DIR}/bench/report.py" --check)
add_test(NAME bench_report COMMAND "${LIBVAR_SYSTEM_PYTHON}" "${PROJECT_SOURCE_DIR}/tests/tools/report_test.py")
set_tests_properties(bench_page bench_report PROPERTIES LABELS cpu TIMEOUT 60)
