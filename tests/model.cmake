# decoder/, vision/ and generate/: each part against a slow oracle, the whole against the goldens.
libvar_add_test(NAME model LABELS cpu sanitize
  SOURCES unit/model/cpu_threads_test.cpp unit/model/decode_step_test.cpp unit/model/decoder_test.cpp unit/model/memory_plan_test.cpp unit/model/parts_test.cpp unit/model/plain_attention_test.cpp unit/model/sampler_test.cpp unit/model/tiny_decoder.cpp unit/model/upload_test.cpp unit/model/var_params_test.cpp
  LINK libvar::libvar)
find_package(nlohmann_json 3.11 REQUIRED)
find_package(ZLIB REQUIRED)
libvar_add_test(NAME golden LABELS cpu golden
  SOURCES unit/analysis/inspection_dtypes_test.cpp unit/analysis/inspection_test.cpp unit/analysis/questions_test.cpp unit/analysis/report_test.cpp unit/analysis/sink_discovery_test.cpp unit/model/batch_session_test.cpp unit/model/family_golden_test.cpp unit/model/golden_test.cpp unit/model/planned_session_test.cpp unit/model/quantized_test.cpp unit/model/session_cuda_test.cpp unit/model/session_test.cpp golden_fixture.cpp
  LINK libvar::libvar nlohmann_json::nlohmann_json ZLIB::ZLIB)
# One thread: the models are so small that others only wait for each other.
set_property(TEST model golden APPEND PROPERTY ENVIRONMENT OMP_NUM_THREADS=1)
# Skipped loudly without a GPU; LIBVAR_REQUIRE_CUDA=1 makes that a failure.
if(LIBVAR_WITH_CUDA)
  foreach(name model golden)
    add_test(NAME ${name}_cuda COMMAND test_${name} "[cuda]")
    set_tests_properties(${name}_cuda PROPERTIES LABELS cuda TIMEOUT 600 SKIP_REGULAR_EXPRESSION "cuda tests skipped")
  endforeach()
endif()

# Many questions in one process: answers as alone, memory flat. The whole of it is ./dev soak.
add_executable(soak soak/requests.cpp soak/soak.cpp golden_fixture.cpp)
target_link_libraries(soak PRIVATE libvar::libvar nlohmann_json::nlohmann_json)
target_include_directories(soak PRIVATE ${PROJECT_SOURCE_DIR}/libvar/src ${CMAKE_CURRENT_SOURCE_DIR})
target_compile_definitions(soak PRIVATE LIBVAR_SOURCE_DIR="${PROJECT_SOURCE_DIR}")
libvar_target_options(soak)
add_test(NAME soak COMMAND soak --questions 60)
add_test(NAME soak_fp16 COMMAND soak --questions 12 --dtype fp16)
# What it is there to find is found.
foreach(fault leak company)
  add_test(NAME soak_finds_${fault} COMMAND soak --questions 60 --fault ${fault})
endforeach()
set_tests_properties(soak_finds_leak PROPERTIES PASS_REGULAR_EXPRESSION "FAILED: the heap grows")
set_tests_properties(soak_finds_company PROPERTIES PASS_REGULAR_EXPRESSION "FAILED: .*, question")
set_tests_properties(soak soak_fp16 soak_finds_leak soak_finds_company PROPERTIES LABELS cpu TIMEOUT 600
  ENVIRONMENT "OMP_NUM_THREADS=1;OMP_WAIT_POLICY=PASSIVE")
