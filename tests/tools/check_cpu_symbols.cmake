# cmake -DNM=nm -DOBJECTS=file.txt -P check_cpu_symbols.cmake
# Fails where an object file of libvar_add_cpu_builds defines a symbol that a linker merges by name (weak, unique): the
# linker might keep the copy that was compiled for a newer processor than the one that runs it.
file(STRINGS "${OBJECTS}" objects)
list(LENGTH objects count)
if(count EQUAL 0)
  message(FATAL_ERROR "no object files in ${OBJECTS}")
endif()
foreach(object IN LISTS objects)
  execute_process(COMMAND "${NM}" -C --defined-only "${object}" OUTPUT_VARIABLE symbols COMMAND_ERROR_IS_FATAL ANY)
  string(REGEX MATCHALL "[^\n]* [WwVvu] [^\n]*" shared "${symbols}")
  if(shared)
    list(JOIN shared "\n  " shared)
    message(FATAL_ERROR "${object} defines symbols that other objects may define too:\n  ${shared}")
  endif()
endforeach()
message(STATUS "${count} object files, no shared symbols")
