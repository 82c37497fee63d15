# archive/, convert/, families/. The Python that ./dev installs reads an archive with torch.jit.load.
find_package(nlohmann_json 3.11 REQUIRED)

libvar_add_test(NAME storage LABELS cpu sanitize
  SOURCES
    golden_fixture.cpp
    unit/storage/archive_test.cpp
    unit/storage/convert_test.cpp
    unit/storage/families_test.cpp
    unit/storage/further_families_test.cpp
    unit/storage/golden_layouts_test.cpp
    unit/storage/module_tree_test.cpp
    unit/storage/page_fetcher_test.cpp
    unit/storage/quantize_test.cpp
    unit/storage/safetensors_test.cpp
    unit/storage/tiny_checkpoint.cpp
  LINK libvar::libvar nlohmann_json::nlohmann_json)
target_compile_definitions(test_storage PRIVATE LIBVAR_PYTHON="${LIBVAR_PYTHON}")
