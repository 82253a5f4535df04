# Language level, warnings, sanitizers and ccache for every target of the project.

set(CMAKE_CXX_STANDARD 20)
set(CMAKE_CXX_STANDARD_REQUIRED ON)
set(CMAKE_CXX_EXTENSIONS OFF)
set(CMAKE_POSITION_INDEPENDENT_CODE ON)
set(CMAKE_EXPORT_COMPILE_COMMANDS ON)
# Everywhere, or precompiled headers fit only some of the targets.
add_compile_options($<$<COMPILE_LANGUAGE:CXX>:-pthread>)

if(NOT CMAKE_BUILD_TYPE AND NOT CMAKE_CONFIGURATION_TYPES)
  set(CMAKE_BUILD_TYPE Release CACHE STRING "Build type" FORCE)
endif()
# Invariants are ISOTHERM_CHECK, never assert(): Release keeps -DNDEBUG for the libraries' headers.
set(CMAKE_CXX_FLAGS_RELEASE "-O2 -DNDEBUG -g1")

find_program(ISOTHERM_CCACHE ccache)
if(ISOTHERM_CCACHE)
  # What ccache wants to be told before it takes precompiled headers.
  set(CMAKE_CXX_COMPILER_LAUNCHER
    "${CMAKE_COMMAND}" -E env CCACHE_SLOPPINESS=pch_defines,time_macros "${ISOTHERM_CCACHE}")
  set(CMAKE_CUDA_COMPILER_LAUNCHER "${ISOTHERM_CCACHE}")
endif()

# lld links a gRPC binary about three times faster than GNU ld; without it the default is used.
find_program(ISOTHERM_LLD ld.lld)
if(ISOTHERM_LLD)
  add_link_options(-fuse-ld=lld)
endif()
add_link_options(-Wl,--gc-sections -Wl,--as-needed)

add_library(isotherm_warnings INTERFACE)
target_compile_options(isotherm_warnings INTERFACE
  $<$<COMPILE_LANGUAGE:CXX>:-Wall -Wextra -Wshadow -Wnon-virtual-dtor -Wcast-align
  -Wno-unused-parameter -Wno-missing-field-initializers>)

if(ISOTHERM_SANITIZE)
  # A third less to wait for; nobody measures these builds.
  string(REPLACE "-O2" "-O1" CMAKE_CXX_FLAGS_RELEASE "${CMAKE_CXX_FLAGS_RELEASE}")
  add_compile_options($<$<COMPILE_LANGUAGE:CXX>:-fsanitize=${ISOTHERM_SANITIZE}>
    $<$<COMPILE_LANGUAGE:CXX>:-fno-omit-frame-pointer> $<$<COMPILE_LANGUAGE:CXX>:-fno-sanitize-recover=all>)
  add_link_options(-fsanitize=${ISOTHERM_SANITIZE})
endif()
if(ISOTHERM_FUZZ)
  if(NOT CMAKE_CXX_COMPILER_ID MATCHES "Clang")
    message(FATAL_ERROR "ISOTHERM_FUZZ needs clang: configure with -DCMAKE_CXX_COMPILER=clang++")
  endif()
  set(ISOTHERM_FUZZ_SANITIZERS address,undefined)
  add_compile_options(-fsanitize=fuzzer-no-link,${ISOTHERM_FUZZ_SANITIZERS}
    -fno-sanitize-recover=all -fno-omit-frame-pointer)
  add_link_options(-fsanitize=${ISOTHERM_FUZZ_SANITIZERS})
endif()
