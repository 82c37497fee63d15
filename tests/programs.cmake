# The command, run as a program: usage and error cases, answers against the goldens.
if(TARGET var)
  libvar_add_test(NAME cli LABELS cpu
    SOURCES cli/ask_questions_test.cpp cli/command.cpp cli/family_errors_test.cpp cli/model_test.cpp cli/sinks_test.cpp cli/usage_test.cpp golden_fixture.cpp unit/storage/tiny_checkpoint.cpp
    LINK libvar::libvar nlohmann_json::nlohmann_json)
  target_compile_definitions(test_cli PRIVATE LIBVAR_VAR_COMMAND="$<TARGET_FILE:var>")
  add_dependencies(test_cli var)
endif()

# The page of var sinks report in headless Chromium. Debian's own Python, since selenium is one of its packages.
if(TARGET var)
  find_program(debian_python python3 PATHS /usr/bin NO_DEFAULT_PATH NO_CACHE)
  if(debian_python)
    add_test(NAME browser COMMAND ${debian_python} ${CMAKE_CURRENT_SOURCE_DIR}/browser/report_test.py --var $<TARGET_FILE:var>
             --source ${PROJECT_SOURCE_DIR} --work ${CMAKE_CURRENT_BINARY_DIR}/browser)
    set_tests_properties(browser PROPERTIES LABELS browser TIMEOUT 600 SKIP_RETURN_CODE 77)
  endif()
endif()

# The demo model: its answers, and the pictures of ./dev demo.
if(TARGET demo)
  add_test(NAME demo COMMAND demo "${PROJECT_SOURCE_DIR}/examples/demo_model/demo.pt"
           "${PROJECT_SOURCE_DIR}/examples/demo_model" "${CMAKE_CURRENT_BINARY_DIR}/demo")
  set_tests_properties(demo PROPERTIES LABELS cpu TIMEOUT 600 PASS_REGULAR_EXPRESSION "right: 24 of 24 with VAR, 24 without")
endif()

# The installed package, used by an outside program.
add_test(NAME package COMMAND ${CMAKE_COMMAND}
  -DBUILD_DIR=${PROJECT_BINARY_DIR} -DSOURCE_DIR=${PROJECT_SOURCE_DIR}
  -DWORK_DIR=${CMAKE_CURRENT_BINARY_DIR}/package -DMODEL=${PROJECT_SOURCE_DIR}/examples/demo_model/demo.pt
  -DIMAGE=${PROJECT_SOURCE_DIR}/examples/demo_model/images/scene_1.png
  -P ${CMAKE_CURRENT_SOURCE_DIR}/package/install_and_embed.cmake)
set_tests_properties(package PROPERTIES LABELS package TIMEOUT 600)

# Each public header compiles alone.
add_test(NAME headers COMMAND ${CMAKE_COMMAND} --build ${PROJECT_BINARY_DIR} --target all_verify_interface_header_sets)
set_tests_properties(headers PROPERTIES LABELS package TIMEOUT 600)
