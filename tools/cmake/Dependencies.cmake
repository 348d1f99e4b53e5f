# The distribution's packages.  tools/setup.sh installs them; the names are Debian's.
if(DEFINED ENV{DMS_PREFIX})
  # Unpacked in the user's cache (tools/environment.sh): the libraries that these libraries need are there too, and only
  # the old kind of run path is used for those.
  target_link_options(dms_settings INTERFACE -Wl,--disable-new-dtags)
endif()
find_package(PkgConfig REQUIRED)
find_package(yaml-cpp REQUIRED)
find_package(CLI11 REQUIRED)
find_package(nlohmann_json REQUIRED)
find_package(Threads REQUIRED)
pkg_check_modules(LIBCRYPTO REQUIRED IMPORTED_TARGET libcrypto)
pkg_check_modules(PCRE2 REQUIRED IMPORTED_TARGET libpcre2-8)
pkg_check_modules(UTF8PROC REQUIRED IMPORTED_TARGET libutf8proc)
pkg_check_modules(ZLIB REQUIRED IMPORTED_TARGET zlib)

# CMake's own FindHDF5 wants the C language and drags in curl and libcrypto; Debian ships a pkg-config file.
pkg_search_module(HDF5 REQUIRED IMPORTED_TARGET hdf5-serial hdf5)
add_library(dms_hdf5 INTERFACE)
target_link_libraries(dms_hdf5 INTERFACE PkgConfig::HDF5)

# Header-only protobuf encoding (libprotozero-dev); the package has no CMake or pkg-config file.
find_path(PROTOZERO_INCLUDE_DIR protozero/pbf_builder.hpp REQUIRED)
add_library(dms_protozero INTERFACE)
target_include_directories(dms_protozero SYSTEM INTERFACE ${PROTOZERO_INCLUDE_DIR})

# Arrow C++ reads Parquet.  It is not in the distributions; the pyarrow wheel carries its headers and libraries, so the
# target dms_arrow exists where .venv has pyarrow.  DMS_PARQUET=OFF builds without it.
option(DMS_PARQUET "Read Parquet files where pyarrow is found" ON)
file(GLOB pyarrow_directories ${PROJECT_SOURCE_DIR}/.venv/lib/python3*/site-packages/pyarrow)
if(DMS_PARQUET AND pyarrow_directories)
  list(GET pyarrow_directories 0 pyarrow)
  file(GLOB arrow_libraries ${pyarrow}/libarrow.so.* ${pyarrow}/libparquet.so.*)
  list(LENGTH arrow_libraries num_arrow_libraries)
  if(num_arrow_libraries EQUAL 2 AND EXISTS ${pyarrow}/include/parquet/arrow/reader.h)
    add_library(dms_arrow INTERFACE)
    target_include_directories(dms_arrow SYSTEM INTERFACE ${pyarrow}/include)
    target_link_libraries(dms_arrow INTERFACE ${arrow_libraries})
    target_link_options(dms_arrow INTERFACE -Wl,-rpath,${pyarrow} -Wl,--allow-shlib-undefined)
  endif()
endif()
if(TARGET dms_arrow)
  message(STATUS "Parquet: ${pyarrow}")
else()
  message(STATUS "Parquet: no (pyarrow is not in .venv)")
endif()
