# CUDA is optional: ISOTHERM_CUDA is AUTO (built when a toolkit is found), ON (an error without one)
# or OFF. The toolkit is looked for at ISOTHERM_CUDA_ROOT, where `./setup --cuda` puts one, and in
# /usr/local/cuda.

set(ISOTHERM_CUDA AUTO CACHE STRING "Build the CUDA backend: AUTO, ON or OFF")
set(ISOTHERM_CUDA_ROOT "" CACHE PATH "CUDA toolkit; empty: where setup and NVIDIA's packages put it")
set(ISOTHERM_CUDA_ARCHITECTURES "90-real;80-virtual" CACHE STRING "GPUs to compile for, as CMAKE_CUDA_ARCHITECTURES")

set(ISOTHERM_HAVE_CUDA FALSE)
if(NOT ISOTHERM_CUDA STREQUAL "OFF")
  find_program(ISOTHERM_NVCC nvcc NO_CACHE
    PATHS "${ISOTHERM_CUDA_ROOT}" /opt/isotherm-cuda/nvidia/cu13 /usr/local/cuda
    PATH_SUFFIXES bin NO_DEFAULT_PATH)
  if(ISOTHERM_NVCC)
    set(CMAKE_CUDA_COMPILER "${ISOTHERM_NVCC}")
    set(CMAKE_CUDA_ARCHITECTURES "${ISOTHERM_CUDA_ARCHITECTURES}")
    set(CMAKE_CUDA_RUNTIME_LIBRARY Static)
    enable_language(CUDA)
    # CMake 3.25 does not know that nvcc does C++20.
    set(CMAKE_CUDA20_STANDARD_COMPILE_OPTION "-std=c++20")
    set(CMAKE_CUDA20_EXTENSION_COMPILE_OPTION "-std=c++20")
    # Not find_package(CUDAToolkit): CMake 3.25's fails with CUDA 13, which has no nvToolsExt.
    cmake_path(GET ISOTHERM_NVCC PARENT_PATH ISOTHERM_CUDA_BIN)
    cmake_path(GET ISOTHERM_CUDA_BIN PARENT_PATH ISOTHERM_CUDA_HOME)
    find_package(Threads REQUIRED)
    add_library(isotherm_cudart INTERFACE)
    target_include_directories(isotherm_cudart SYSTEM INTERFACE "${ISOTHERM_CUDA_HOME}/include")
    target_link_libraries(isotherm_cudart INTERFACE "${ISOTHERM_CUDA_HOME}/lib64/libcudart_static.a"
      Threads::Threads ${CMAKE_DL_LIBS} rt)
    add_library(isotherm::cudart ALIAS isotherm_cudart)
    add_library(isotherm_cublas INTERFACE)
    target_link_libraries(isotherm_cublas INTERFACE isotherm_cudart
      "${ISOTHERM_CUDA_HOME}/lib64/libcublas.so" "${ISOTHERM_CUDA_HOME}/lib64/libcublasLt.so")
    add_library(isotherm::cublas ALIAS isotherm_cublas)
    set(CMAKE_CUDA_FLAGS_RELEASE "-O3 -DNDEBUG -lineinfo")
    set(ISOTHERM_HAVE_CUDA TRUE)
    message(STATUS "CUDA backend: ${CMAKE_CUDA_COMPILER} ${CMAKE_CUDA_COMPILER_VERSION}")
  elseif(ISOTHERM_CUDA STREQUAL "ON")
    message(FATAL_ERROR "ISOTHERM_CUDA=ON, but there is no CUDA toolkit: run ./setup --cuda, or give -DISOTHERM_CUDA_ROOT=/path")
  endif()
endif()
