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

# CMake's own FindHDF5 wants the C language and drags in curl and libcrypto; Debian ships a pkg-config file.
pkg_search_module(HDF5 REQUIRED IMPORTED_TARGET hdf5-serial hdf5)
add_library(dms_hdf5 INTERFACE)
target_link_libraries(dms_hdf5 INTERFACE PkgConfig::HDF5)

# Header-only protobuf encoding (libprotozero-dev); the package has no CMake or pkg-config file.
find_path(PROTOZERO_INCLUDE_DIR protozero/pbf_builder.hpp REQUIRED)
add_library(dms_protozero INTERFACE)
target_include_directories(dms_protozero SYSTEM INTERFACE ${PROTOZERO_INCLUDE_DIR})
