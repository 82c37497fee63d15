# Sources that are compiled once per capability of kernels/cpu/capability.h and linked into one target, which chooses at
# run time. -O3 and no traps: the loops are written to be vectorised. No fusing of products and sums by the compiler: see
# vector.h. GCC 12's own AVX-512 headers warn of uninitialised variables; clang-tidy does not know one of these warnings.
set(LIBVAR_CPU_BUILDS portable avx2 avx512 avx512_bf16)
set(libvar_cpu_flags_portable "")
set(libvar_cpu_flags_avx2 -mavx2 -mfma -mf16c)
set(libvar_cpu_flags_avx512 ${libvar_cpu_flags_avx2} -mavx512f -mavx512bw -mavx512dq -mavx512vl)
set(libvar_cpu_flags_avx512_bf16 ${libvar_cpu_flags_avx512} -mavx512bf16)

# libvar_add_cpu_builds(target sources...): once per target.
function(libvar_add_cpu_builds target)
  foreach(build IN LISTS LIBVAR_CPU_BUILDS)
    set(objects ${target}_${build})
    add_library(${objects} OBJECT ${ARGN})
    target_include_directories(${objects} PRIVATE ${CMAKE_CURRENT_SOURCE_DIR} ${PROJECT_SOURCE_DIR}/kernels ${PROJECT_SOURCE_DIR}/kernels/include)
    target_compile_definitions(${objects} PRIVATE LIBVAR_CPU_NAMESPACE=${build})
    libvar_target_options(${objects})
    target_compile_options(${objects} PRIVATE -O3 -fno-trapping-math -fno-math-errno -ffp-contract=off
      -Wno-uninitialized -Wno-maybe-uninitialized -Wno-unknown-warning-option ${libvar_cpu_flags_${build}})
    target_sources(${target} PRIVATE $<TARGET_OBJECTS:${objects}>)
    set_property(GLOBAL APPEND PROPERTY LIBVAR_CPU_BUILD_OBJECTS $<TARGET_OBJECTS:${objects}>)
  endforeach()
endfunction()
