# LibTorch from the PyPI wheel (or any installed torch of the same version), as target dms::torch.
#
# TORCH_ROOT names the directory that holds include/ and lib/ (site-packages/torch).  Found, in this order, from
#   -DTORCH_ROOT=..., -DTorch_DIR=.../share/cmake/Torch, the repository's .venv, the python3 on PATH.
# find_package(Torch) is not used: it refuses a CUDA wheel on a machine without the CUDA toolkit, and libtorch.so
# pulls libtorch_cuda.so (400 MB of memory) into CPU-only programs.
#
# DMS_CUDA = AUTO | ON | OFF.  AUTO is ON when nvcc is found and this torch can load its CUDA libraries.
set(DMS_TORCH_VERSION 2.11.0)
set(DMS_CUDA AUTO CACHE STRING "Link LibTorch's CUDA half: AUTO, ON or OFF")

if(NOT TORCH_ROOT AND Torch_DIR)
  get_filename_component(TORCH_ROOT "${Torch_DIR}/../../.." ABSOLUTE)
endif()
if(NOT TORCH_ROOT)
  foreach(python ${PROJECT_SOURCE_DIR}/.venv/bin/python3 python3)
    execute_process(
      COMMAND ${python} -c "import importlib.util as u, os; print(os.path.dirname(u.find_spec('torch').origin))"
      OUTPUT_VARIABLE found OUTPUT_STRIP_TRAILING_WHITESPACE ERROR_QUIET RESULT_VARIABLE failed)
    if(NOT failed AND EXISTS "${found}/include/ATen/ATen.h")
      set(TORCH_ROOT "${found}")
      break()
    endif()
  endforeach()
endif()
if(NOT EXISTS "${TORCH_ROOT}/include/ATen/ATen.h")
  message(FATAL_ERROR "LibTorch ${DMS_TORCH_VERSION} not found.\n"
    "  Run tools/setup.sh, which installs it into .venv, or pass -DTORCH_ROOT=<site-packages>/torch.")
endif()
file(STRINGS ${TORCH_ROOT}/version.py version_line REGEX "^__version__")
if(NOT version_line MATCHES "${DMS_TORCH_VERSION}")
  message(FATAL_ERROR "LibTorch in ${TORCH_ROOT} is ${version_line}; this project needs ${DMS_TORCH_VERSION}.")
endif()

find_program(DMS_NVCC nvcc HINTS /usr/local/cuda/bin ENV CUDA_HOME PATH_SUFFIXES bin)
get_filename_component(site_packages ${TORCH_ROOT} DIRECTORY)
set(torch_has_cuda OFF)
if(EXISTS ${TORCH_ROOT}/lib/libtorch_cuda.so AND EXISTS ${site_packages}/nvidia/cudnn)
  set(torch_has_cuda ON)
endif()
if(DMS_CUDA STREQUAL "AUTO")
  if(DMS_NVCC AND torch_has_cuda)
    set(dms_cuda ON)
  else()
    set(dms_cuda OFF)
  endif()
else()
  set(dms_cuda ${DMS_CUDA})
endif()

add_library(dms_torch INTERFACE)
add_library(dms::torch ALIAS dms_torch)
target_include_directories(dms_torch SYSTEM INTERFACE
  ${TORCH_ROOT}/include ${TORCH_ROOT}/include/torch/csrc/api/include)
target_link_options(dms_torch INTERFACE -Wl,--allow-shlib-undefined -Wl,-rpath,${TORCH_ROOT}/lib)
target_link_libraries(dms_torch INTERFACE
  -Wl,--push-state,--no-as-needed ${TORCH_ROOT}/lib/libtorch_cpu.so ${TORCH_ROOT}/lib/libc10.so -Wl,--pop-state)
if(dms_cuda)
  find_package(CUDAToolkit 13.0 REQUIRED)
  # Only the files that call CUDA's own API see it (they get this definition one by one), so that switching
  # between a CPU and a CUDA build relinks instead of recompiling.
  set(DMS_CUDA_DEFINITION DMS_CUDA=1)
  target_include_directories(dms_torch SYSTEM INTERFACE ${CUDAToolkit_INCLUDE_DIRS})
  target_link_libraries(dms_torch INTERFACE
    -Wl,--push-state,--no-as-needed ${TORCH_ROOT}/lib/libtorch_cuda.so ${TORCH_ROOT}/lib/libc10_cuda.so
    -Wl,--pop-state)
endif()
message(STATUS "LibTorch: ${TORCH_ROOT} (CUDA: ${dms_cuda})")
