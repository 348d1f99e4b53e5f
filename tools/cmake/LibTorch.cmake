# LibTorch from the PyPI wheel (or any installed torch of the same version), as target dms::torch.
#
# TORCH_ROOT names the directory that holds include/ and lib/ (site-packages/torch).  Found, in this order, from
#   -DTORCH_ROOT=..., -DTorch_DIR=.../share/cmake/Torch, the same two in the environment, the repository's .venv, the
#   python3 on PATH.
# find_package(Torch) is not used: it refuses a CUDA wheel on a machine without the CUDA toolkit, and libtorch.so
# pulls libtorch_cuda.so (400 MB of memory) into CPU-only programs.
#
# DMS_CUDA = AUTO | ON | OFF.  AUTO is ON when nvcc is found and this torch can load its CUDA libraries.  nvcc is looked
# for on PATH, and in $CUDA_HOME and /usr/local/cuda only when the machine has a GPU or DMS_CUDA is ON.  So without nvcc
# on PATH (or with DMS_CUDA=OFF) one gets the CPU build that a machine without the toolkit gets.
set(DMS_TORCH_VERSION 2.11.0)
set(DMS_CUDA AUTO CACHE STRING "Link LibTorch's CUDA half: AUTO, ON or OFF")
set_property(CACHE DMS_CUDA PROPERTY STRINGS AUTO ON OFF)

# Sets `out` to the directory of the torch that `python` would import, if it has LibTorch's headers.
function(dms_torch_of_python python out)
  execute_process(
    COMMAND ${python} -c "import importlib.util as u, os; print(os.path.dirname(u.find_spec('torch').origin))"
    OUTPUT_VARIABLE directory OUTPUT_STRIP_TRAILING_WHITESPACE ERROR_QUIET RESULT_VARIABLE failed)
  if(NOT failed AND EXISTS "${directory}/include/ATen/ATen.h")
    set(${out} "${directory}" PARENT_SCOPE)
  endif()
endfunction()

if(NOT TORCH_ROOT AND Torch_DIR)
  get_filename_component(TORCH_ROOT "${Torch_DIR}/../../.." ABSOLUTE)
endif()
if(NOT TORCH_ROOT AND DEFINED ENV{TORCH_ROOT})
  set(TORCH_ROOT "$ENV{TORCH_ROOT}")
endif()
if(NOT TORCH_ROOT AND DEFINED ENV{Torch_DIR})
  get_filename_component(TORCH_ROOT "$ENV{Torch_DIR}/../../.." ABSOLUTE)
endif()
foreach(python ${PROJECT_SOURCE_DIR}/.venv/bin/python3 python3)
  if(NOT TORCH_ROOT)
    dms_torch_of_python(${python} TORCH_ROOT)
  endif()
endforeach()
if(NOT EXISTS "${TORCH_ROOT}/include/ATen/ATen.h")
  message(FATAL_ERROR "LibTorch ${DMS_TORCH_VERSION} not found (TORCH_ROOT: '${TORCH_ROOT}').\n"
    "  Run tools/setup.sh, which installs it into .venv, or pass -DTORCH_ROOT=<site-packages>/torch.")
endif()
file(STRINGS ${TORCH_ROOT}/version.py version_line REGEX "^__version__ = ")
if(NOT version_line MATCHES "'${DMS_TORCH_VERSION}(\\+.*)?'")
  message(FATAL_ERROR "LibTorch in ${TORCH_ROOT} has ${version_line}; this project needs ${DMS_TORCH_VERSION}.")
endif()

# Not cached: a toolkit that appears or disappears is noticed by the next configure.
set(toolkit_places)
if(DMS_CUDA STREQUAL "ON" OR EXISTS /dev/nvidia0)
  set(toolkit_places $ENV{CUDA_HOME}/bin /usr/local/cuda/bin)
endif()
find_program(nvcc nvcc PATHS ENV PATH ${toolkit_places} NO_DEFAULT_PATH NO_CACHE)
# The wheel's CUDA libraries are packages of their own, which tools/setup.sh leaves out on a CPU-only machine; a torch
# built against the system's CUDA has none of them.
get_filename_component(site_packages ${TORCH_ROOT} DIRECTORY)
set(torch_cuda_complete OFF)
if(EXISTS ${TORCH_ROOT}/lib/libtorch_cuda.so
   AND (EXISTS ${site_packages}/nvidia/cudnn OR NOT EXISTS ${site_packages}/nvidia))
  set(torch_cuda_complete ON)
endif()

set(dms_cuda OFF)
if(DMS_CUDA STREQUAL "AUTO")
  if(nvcc AND torch_cuda_complete)
    set(dms_cuda ON)
  endif()
elseif(DMS_CUDA)
  if(NOT nvcc)
    message(FATAL_ERROR "DMS_CUDA is ON, but nvcc is neither on PATH nor in \$CUDA_HOME/bin or /usr/local/cuda/bin.")
  endif()
  if(NOT torch_cuda_complete)
    message(FATAL_ERROR "DMS_CUDA is ON, but the torch in ${TORCH_ROOT} lacks CUDA libraries.\n"
      "  tools/setup.sh installs them where there is a GPU, tools/setup.sh --reference everywhere.")
  endif()
  set(dms_cuda ON)
endif()

add_library(dms_torch INTERFACE)
add_library(dms::torch ALIAS dms_torch)
target_include_directories(dms_torch SYSTEM INTERFACE
  ${TORCH_ROOT}/include ${TORCH_ROOT}/include/torch/csrc/api/include)
# --no-as-needed: some libraries register their operators when they are loaded and are never called by name.
# --allow-shlib-undefined: what the CUDA wheel's libraries lack on a CPU-only machine is never reached there.
target_link_options(dms_torch INTERFACE
  -Wl,--no-as-needed -Wl,--allow-shlib-undefined -Wl,-rpath,${TORCH_ROOT}/lib)
target_link_libraries(dms_torch INTERFACE ${TORCH_ROOT}/lib/libtorch_cpu.so ${TORCH_ROOT}/lib/libc10.so)
if(dms_cuda)
  get_filename_component(nvcc_directory ${nvcc} DIRECTORY)
  set(CUDAToolkit_ROOT ${nvcc_directory}/..)
  find_package(CUDAToolkit 13.0 REQUIRED)
  # The wheel's own runtime where it has one, so that a program does not load two.
  set(cudart ${site_packages}/nvidia/cu13/lib/libcudart.so.13)
  if(NOT EXISTS ${cudart})
    set(cudart CUDA::cudart)
  endif()
  target_link_libraries(dms_torch INTERFACE
    ${TORCH_ROOT}/lib/libtorch_cuda.so ${TORCH_ROOT}/lib/libc10_cuda.so ${cudart})
  # Of NCCL only the header is needed: c10d's NCCL is in libtorch_cuda.so.
  find_path(DMS_NCCL_INCLUDE_DIR nccl.h HINTS ${site_packages}/nvidia/nccl/include)
endif()

message(STATUS "LibTorch: ${TORCH_ROOT} (CUDA: ${dms_cuda})")
# Target dms_nccl: what the one file that includes c10d's NCCL needs.  It exists where that can be compiled.
if(dms_cuda AND DMS_NCCL_INCLUDE_DIR)
  add_library(dms_nccl INTERFACE)
  target_include_directories(dms_nccl SYSTEM INTERFACE ${DMS_NCCL_INCLUDE_DIR} ${CUDAToolkit_INCLUDE_DIRS})
  message(STATUS "NCCL: ${DMS_NCCL_INCLUDE_DIR}")
elseif(dms_cuda)
  message(WARNING "nccl.h was not found: ranks on GPUs will not be able to share weights (placement: shard).\n"
    "  It comes with the PyPI wheel nvidia-nccl-cu13 and with the distribution's libnccl-dev.")
endif()
