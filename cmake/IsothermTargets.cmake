# isotherm_cc_library(NAME base HDRS a.h SRCS a.cc DEPS absl::status)  -> isotherm_base, alias isotherm::base
# isotherm_cc_binary(NAME isotherm-gateway SRCS main.cc DEPS ...)      -> bin/isotherm-gateway
# isotherm_cc_test(NAME gguf_reader_test SRCS ... DEPS ... LABELS unit [DATA] [TIMEOUT s])
# isotherm_cc_benchmark(NAME sparse_ffn_benchmark SRCS ... DEPS ...)
# Sources are listed, never globbed; includes start at the repository root.

# The sources of a target read the same headers, which take longer to compile than what follows them:
# with ISOTHERM_UNITY a compiler run takes up to 16 of them (CMake's unity build). Not those that
# Highway compiles once per instruction set, nor those with options of their own.
# `precompiled`: whose headers it takes over, see IsothermPrecompiled.cmake; its flags must be the
# same. "": none.
function(isotherm_compile_together target precompiled)
  if(NOT ISOTHERM_UNITY)
    return()
  endif()
  set_target_properties(${target} PROPERTIES UNITY_BUILD ON UNITY_BUILD_BATCH_SIZE 16)
  if(TARGET "${precompiled}")
    target_precompile_headers(${target} REUSE_FROM ${precompiled})
  endif()
  foreach(source ${ARGN})
    if(NOT source MATCHES "[.]cc$")
      continue()
    endif()
    file(STRINGS "${source}" per_target LIMIT_COUNT 1 REGEX "hwy/foreach_target[.]h")
    if(per_target)
      set_source_files_properties("${source}" PROPERTIES SKIP_UNITY_BUILD_INCLUSION ON)
    endif()
  endforeach()
endfunction()

# Compiled in four fifths of the time; what the tests test is compiled as it ships.
function(isotherm_test_flags target)
  target_compile_options(${target} PRIVATE $<$<AND:$<CONFIG:Release>,$<COMPILE_LANGUAGE:CXX>>:-O1>)
endfunction()

include(IsothermPrecompiled)

set(CMAKE_RUNTIME_OUTPUT_DIRECTORY "${CMAKE_BINARY_DIR}/bin")

function(isotherm_cc_library)
  cmake_parse_arguments(ARG "" "NAME" "HDRS;SRCS;DEPS;PRIVATE_DEPS" ${ARGN})
  set(target "isotherm_${ARG_NAME}")
  if(ARG_SRCS)
    add_library(${target} STATIC ${ARG_SRCS} ${ARG_HDRS})
    target_include_directories(${target} PUBLIC "${CMAKE_SOURCE_DIR}")
    target_link_libraries(${target} PUBLIC ${ARG_DEPS} PRIVATE ${ARG_PRIVATE_DEPS} isotherm_warnings)
    isotherm_compile_together(${target} isotherm_precompiled ${ARG_SRCS})
  else()
    add_library(${target} INTERFACE)
    target_include_directories(${target} INTERFACE "${CMAKE_SOURCE_DIR}")
    target_link_libraries(${target} INTERFACE ${ARG_DEPS})
  endif()
  add_library(isotherm::${ARG_NAME} ALIAS ${target})
endfunction()

function(isotherm_cc_binary)
  cmake_parse_arguments(ARG "" "NAME" "SRCS;DEPS" ${ARGN})
  add_executable(${ARG_NAME} ${ARG_SRCS})
  target_include_directories(${ARG_NAME} PRIVATE "${CMAKE_SOURCE_DIR}")
  target_link_libraries(${ARG_NAME} PRIVATE ${ARG_DEPS} isotherm_warnings)
  isotherm_compile_together(${ARG_NAME} "" ${ARG_SRCS})
endfunction()

# A test program, of which nothing runs by itself.
function(isotherm_cc_test_program)
  cmake_parse_arguments(ARG "" "NAME" "SRCS;DEPS" ${ARGN})
  add_executable(${ARG_NAME} ${ARG_SRCS})
  set_target_properties(${ARG_NAME} PROPERTIES RUNTIME_OUTPUT_DIRECTORY "${CMAKE_BINARY_DIR}/tests")
  target_include_directories(${ARG_NAME} PRIVATE "${CMAKE_SOURCE_DIR}")
  target_link_libraries(${ARG_NAME} PRIVATE ${ARG_DEPS} GTest::gmock GTest::gtest_main isotherm_warnings)
  target_compile_definitions(${ARG_NAME} PRIVATE
    ISOTHERM_SOURCE_DIR="${CMAKE_SOURCE_DIR}" ISOTHERM_BINARY_DIR="${CMAKE_BINARY_DIR}")
  isotherm_test_flags(${ARG_NAME})
  isotherm_compile_together(${ARG_NAME} isotherm_precompiled_test ${ARG_SRCS})
endfunction()

function(isotherm_cc_test)
  cmake_parse_arguments(ARG "" "NAME;TIMEOUT" "SRCS;DEPS;LABELS" ${ARGN})
  isotherm_cc_test_program(NAME ${ARG_NAME} SRCS ${ARG_SRCS} DEPS ${ARG_DEPS})
  if(NOT ARG_LABELS)
    set(ARG_LABELS unit)
  endif()
  if(NOT ARG_TIMEOUT)
    set(ARG_TIMEOUT 120)
  endif()
  # One ctest entry per binary: the suites are many and start-up dominates otherwise.
  add_test(NAME ${ARG_NAME} COMMAND ${ARG_NAME})
  set_tests_properties(${ARG_NAME} PROPERTIES LABELS "${ARG_LABELS}" TIMEOUT ${ARG_TIMEOUT})
endfunction()

function(isotherm_cc_benchmark)
  cmake_parse_arguments(ARG "" "NAME" "SRCS;DEPS" ${ARGN})
  add_executable(${ARG_NAME} ${ARG_SRCS})
  set_target_properties(${ARG_NAME} PROPERTIES RUNTIME_OUTPUT_DIRECTORY "${CMAKE_BINARY_DIR}/bench")
  target_include_directories(${ARG_NAME} PRIVATE "${CMAKE_SOURCE_DIR}")
  target_link_libraries(${ARG_NAME} PRIVATE ${ARG_DEPS} benchmark::benchmark isotherm_warnings)
endfunction()
