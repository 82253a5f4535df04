# What nearly all sources include (standard library, Abseil, in tests GoogleTest) takes longer to
# read than most of them; with ISOTHERM_UNITY it is read once. Sources still include what they use:
# tools/lint --tidy compiles each by itself.
#   isotherm_precompiled       for libraries
#   isotherm_precompiled_test  for test programs, which are compiled with other flags

if(NOT ISOTHERM_UNITY OR ISOTHERM_FUZZ)
  return()
endif()

set(isotherm_common_headers
  <algorithm> <array> <atomic> <bit> <chrono> <cmath> <condition_variable> <cstdint> <cstring>
  <deque> <filesystem> <fstream> <functional> <limits> <map> <memory> <mutex> <optional> <random>
  <set> <span> <sstream> <string> <thread> <unordered_map> <utility> <vector>
  <absl/status/statusor.h> <absl/strings/str_cat.h> <absl/strings/str_format.h>
  <absl/synchronization/mutex.h> <absl/time/time.h>)

file(CONFIGURE OUTPUT "${CMAKE_BINARY_DIR}/precompiled/none.cc" CONTENT "")
add_library(isotherm_precompiled STATIC "${CMAKE_BINARY_DIR}/precompiled/none.cc")
target_link_libraries(isotherm_precompiled PRIVATE isotherm_warnings)
target_precompile_headers(isotherm_precompiled PRIVATE ${isotherm_common_headers})

if(ISOTHERM_BUILD_TESTS)
  add_executable(isotherm_precompiled_test EXCLUDE_FROM_ALL "${CMAKE_BINARY_DIR}/precompiled/none.cc")
  target_link_libraries(isotherm_precompiled_test
    PRIVATE GTest::gmock GTest::gtest_main isotherm_warnings)
  isotherm_test_flags(isotherm_precompiled_test)
  target_precompile_headers(isotherm_precompiled_test
    PRIVATE ${isotherm_common_headers} <gmock/gmock.h> <gtest/gtest.h>)
endif()
