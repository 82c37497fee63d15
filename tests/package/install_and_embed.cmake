# Installs libvar to a temporary prefix, builds examples/embed against it and runs it.
# cmake -DBUILD_DIR=... -DSOURCE_DIR=... -DTORCH_ROOT=... -DWORK_DIR=... [-DMODEL=... -DIMAGE=...] -P install_and_embed.cmake
function(run)
  execute_process(COMMAND ${ARGV} RESULT_VARIABLE code OUTPUT_VARIABLE output ERROR_VARIABLE output)
  if(NOT code EQUAL 0)
    string(JOIN " " command ${ARGV})
    message(FATAL_ERROR "failed (${code}): ${command}\n${output}")
  endif()
  set(output "${output}" PARENT_SCOPE)
endfunction()

file(REMOVE_RECURSE "${WORK_DIR}")
run(${CMAKE_COMMAND} --install "${BUILD_DIR}" --prefix "${WORK_DIR}/prefix")
# The consumer gets no hint but the prefix: LibTorch must be found through the installed package.
run(${CMAKE_COMMAND} -E env --unset=TORCH_DIR --unset=LibTorch_ROOT
    ${CMAKE_COMMAND} -S "${SOURCE_DIR}/examples/embed" -B "${WORK_DIR}/build" -G Ninja -DCMAKE_BUILD_TYPE=Release
    "-DCMAKE_PREFIX_PATH=${WORK_DIR}/prefix")
run(${CMAKE_COMMAND} --build "${WORK_DIR}/build")
run("${WORK_DIR}/build/embed" "${MODEL}" "${IMAGE}" "What color is the circle?")
message(STATUS "embed answered: ${output}")
if(NOT output MATCHES "tokens")
  message(FATAL_ERROR "embed printed no answer: ${output}")
endif()
file(REMOVE_RECURSE "${WORK_DIR}")
