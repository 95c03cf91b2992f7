# The CUDA module _cuda. SFF_FAST_CUDA: "auto" builds it where an nvcc works, "on" fails without one, "off" leaves it out.
# A GPU need not be there. nvcc is called directly: two commands for one object, and nothing to go wrong without it.
#
# The target is not part of `all`: setup.py builds it after _cpu and knows from SFF_FAST_CUDA what a failure means. Why it is
# left out is written to _cuda_absent.txt, which the installed package shows in `sff-fast doctor`.
set(SFF_FAST_CUDA "auto" CACHE STRING "CUDA module: auto, on or off")
set(SFF_CUDA_ABSENT "")
set(SFF_CUDA_FLAGS -std=c++17 -O3 -fmad=false -ftz=false -prec-sqrt=true -prec-div=true -DSFF_ISA=device)

if(NOT SFF_FAST_CUDA MATCHES "^(auto|on|off)$")
  message(FATAL_ERROR "SFF_FAST_CUDA must be auto, on or off, got '${SFF_FAST_CUDA}'")
endif()

if(SFF_FAST_CUDA STREQUAL "off")
  set(SFF_CUDA_ABSENT "left out by SFF_FAST_CUDA=off")
else()
  # The machine's nvcc, or the one of PyPI's nvidia-cuda-nvcc in the environment of this Python.
  execute_process(COMMAND ${Python_EXECUTABLE} -c "import sysconfig; print(sysconfig.get_paths()['purelib'])"
    OUTPUT_VARIABLE SFF_SITE OUTPUT_STRIP_TRAILING_WHITESPACE)
  file(GLOB SFF_PYPI_CUDA "${SFF_SITE}/nvidia/cu1*/bin" "${SFF_SITE}/nvidia/cuda_nvcc/bin")
  find_program(SFF_NVCC nvcc HINTS ENV CUDA_HOME ENV CUDA_PATH PATHS ${SFF_PYPI_CUDA} /usr/local/cuda/bin PATH_SUFFIXES bin)
  if(NOT SFF_NVCC)
    set(SFF_CUDA_ABSENT "no nvcc was found when this was built")
  endif()
endif()

if(NOT SFF_CUDA_ABSENT)
  # One small file shows whether compiler, headers and host compiler fit, and where the static runtime library lies.
  set(SFF_PROBE "${CMAKE_CURRENT_BINARY_DIR}/cuda_probe.cu")
  file(WRITE "${SFF_PROBE}" "#include <cuda_runtime.h>\n__global__ void probe(int* x) { *x = 1; }\n")
  set(SFF_NVCC_COMMAND ${SFF_NVCC} -ccbin ${CMAKE_CXX_COMPILER})
  execute_process(COMMAND ${SFF_NVCC_COMMAND} ${SFF_CUDA_FLAGS} -c "${SFF_PROBE}" -o "${SFF_PROBE}.o"
    RESULT_VARIABLE SFF_RESULT ERROR_VARIABLE SFF_ERROR OUTPUT_VARIABLE SFF_ERROR)
  execute_process(COMMAND ${SFF_NVCC} --list-gpu-code OUTPUT_VARIABLE SFF_CODES ERROR_QUIET)
  execute_process(COMMAND ${SFF_NVCC} -dryrun "${SFF_PROBE}" ERROR_VARIABLE SFF_DRYRUN OUTPUT_QUIET)
  string(REGEX MATCH "TOP=([^\n]*)" _ "${SFF_DRYRUN}")
  find_library(SFF_CUDART cudart_static PATHS "${CMAKE_MATCH_1}" PATH_SUFFIXES lib64 lib targets/${CMAKE_SYSTEM_PROCESSOR}-linux/lib
    NO_DEFAULT_PATH)
  find_path(SFF_CUDA_INCLUDE cuda_runtime_api.h PATHS "${CMAKE_MATCH_1}" PATH_SUFFIXES include targets/${CMAKE_SYSTEM_PROCESSOR}-linux/include
    NO_DEFAULT_PATH)
  set(SFF_ARCHITECTURES "")
  foreach(arch 80 90 100)
    if(SFF_CODES MATCHES "sm_${arch}[^0-9]")
      list(APPEND SFF_ARCHITECTURES ${arch})
    endif()
  endforeach()
  if(NOT SFF_RESULT EQUAL 0)
    string(REGEX REPLACE "[\r\n]+" " " SFF_ERROR "${SFF_ERROR}")
    string(SUBSTRING "${SFF_ERROR}" 0 300 SFF_ERROR)
    set(SFF_CUDA_ABSENT "${SFF_NVCC} did not compile a small file when this was built: ${SFF_ERROR}")
  elseif(NOT SFF_CUDART OR NOT SFF_CUDA_INCLUDE)
    set(SFF_CUDA_ABSENT "${SFF_NVCC} came without libcudart_static.a or cuda_runtime_api.h when this was built")
  elseif(NOT SFF_ARCHITECTURES)
    set(SFF_CUDA_ABSENT "${SFF_NVCC} knows none of sm_80, sm_90, sm_100")
  endif()
endif()

if(SFF_CUDA_ABSENT AND SFF_FAST_CUDA STREQUAL "on")
  message(FATAL_ERROR "SFF_FAST_CUDA=on: ${SFF_CUDA_ABSENT}. Put nvcc on the PATH, set CUDA_HOME, or pip install 'sff_fast[cuda]' (requirements/cuda.txt)")
endif()
file(WRITE "${CMAKE_CURRENT_BINARY_DIR}/_cuda_absent.txt" "${SFF_CUDA_ABSENT}")

if(SFF_CUDA_ABSENT)
  message(STATUS "sff_fast: no CUDA module: ${SFF_CUDA_ABSENT}")
  return()
endif()

set(SFF_CODEGEN "")
set(SFF_NAMES "")
foreach(arch ${SFF_ARCHITECTURES})
  list(APPEND SFF_CODEGEN -gencode arch=compute_${arch},code=sm_${arch})
  list(APPEND SFF_NAMES sm_${arch})
endforeach()
list(GET SFF_ARCHITECTURES -1 SFF_LAST)
list(APPEND SFF_CODEGEN -gencode arch=compute_${SFF_LAST},code=compute_${SFF_LAST})
string(REPLACE ";" " " SFF_NAMES "${SFF_NAMES}")
message(STATUS "sff_fast: CUDA module for ${SFF_NAMES} and PTX for later ones, with ${SFF_NVCC}")

set(SFF_OBJECTS "")
foreach(name smooth adamw adamw_resident)
  set(SFF_SOURCE "${CMAKE_CURRENT_SOURCE_DIR}/csrc/cuda/${name}.cu")
  set(SFF_OBJECT "${CMAKE_CURRENT_BINARY_DIR}/${name}.cu.o")
  list(APPEND SFF_OBJECTS "${SFF_OBJECT}")
  add_custom_command(OUTPUT "${SFF_OBJECT}"
    COMMAND ${SFF_NVCC_COMMAND} ${SFF_CUDA_FLAGS} ${SFF_CODEGEN} --threads 0 -cudart static
      -Xcompiler -fPIC,-fvisibility=hidden -MD -MF "${SFF_OBJECT}.d" -c "${SFF_SOURCE}" -o "${SFF_OBJECT}"
    DEPENDS "${SFF_SOURCE}" DEPFILE "${SFF_OBJECT}.d"
    COMMENT "nvcc ${name}.cu for ${SFF_NAMES}" VERBATIM)
endforeach()

pybind11_add_module(_cuda MODULE NO_EXTRAS EXCLUDE_FROM_ALL
  csrc/bindings_cuda.cpp csrc/bindings_cuda_optim.cpp csrc/cuda/adamw_chunks.cpp csrc/cuda/chunks.cpp csrc/cpu/check_adamw.cpp
  csrc/cpu/check_tasks.cpp ${SFF_OBJECTS})
target_compile_options(_cuda PRIVATE ${SFF_FLAGS})
target_compile_definitions(_cuda PRIVATE SFF_ISA=device SFF_CUDA_ARCHITECTURES="${SFF_NAMES}")
target_include_directories(_cuda SYSTEM PRIVATE "${SFF_CUDA_INCLUDE}")
target_link_libraries(_cuda PRIVATE "${SFF_CUDART}" Threads::Threads ${CMAKE_DL_LIBS} rt)
install(TARGETS _cuda LIBRARY DESTINATION sff_fast COMPONENT cuda EXCLUDE_FROM_ALL)
