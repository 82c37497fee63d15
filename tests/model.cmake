# decoder/, vision/ and generate/: each part against a slow oracle, the whole against the goldens.
libvar_add_test(NAME model LABELS cpu sanitize
  SOURCES unit/model/decode_step_test.cpp unit/model/decoder_test.cpp unit/model/parts_test.cpp unit/model/sampler_test.cpp unit/model/tiny_decoder.cpp unit/model/var_params_test.cpp
  LINK libvar::libvar)
find_package(nlohmann_json 3.11 REQUIRED)
find_package(ZLIB REQUIRED)
libvar_add_test(NAME golden LABELS cpu golden
  SOURCES unit/analysis/inspection_dtypes_test.cpp unit/analysis/inspection_test.cpp unit/analysis/questions_test.cpp unit/analysis/report_test.cpp unit/analysis/sink_discovery_test.cpp unit/model/batch_session_test.cpp unit/model/family_golden_test.cpp unit/model/golden_test.cpp unit/model/quantized_test.cpp unit/model/session_cuda_test.cpp unit/model/session_test.cpp golden_fixture.cpp
  LINK libvar::libvar nlohmann_json::nlohmann_json ZLIB::ZLIB)
# One thread: the models are so small that others only wait for each other.
set_property(TEST model golden APPEND PROPERTY ENVIRONMENT OMP_NUM_THREADS=1)
# Skipped loudly without a GPU; LIBVAR_REQUIRE_CUDA=1 makes that a failure.
if(LIBVAR_WITH_CUDA)
  add_test(NAME model_cuda COMMAND test_golden "[cuda]")
  set_tests_properties(model_cuda PROPERTIES LABELS cuda TIMEOUT 600 SKIP_REGULAR_EXPRESSION "cuda tests skipped")
endif()
