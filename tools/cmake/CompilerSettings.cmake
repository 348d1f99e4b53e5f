# Flags that every target of this project shares.  Targets link dms_settings.
add_library(dms_settings INTERFACE)
target_include_directories(dms_settings INTERFACE ${PROJECT_SOURCE_DIR})
target_compile_options(dms_settings INTERFACE -Wall -Wextra -Wno-unused-parameter
  $<$<CXX_COMPILER_ID:GNU>:-Wno-restrict>)  # GCC 12 raises it falsely for std::string concatenation (GCC bug 105651)
if(DMS_WERROR)
  target_compile_options(dms_settings INTERFACE -Werror)
endif()
if(DMS_SANITIZE)
  # LibTorch itself is not instrumented; vptr checks would need RTTI of its hidden classes.
  target_compile_options(dms_settings INTERFACE -fsanitize=address,undefined -fno-sanitize=vptr
                                                -fno-omit-frame-pointer)
  target_link_options(dms_settings INTERFACE -fsanitize=address,undefined -fno-sanitize=vptr)
  if(DMS_FUZZ)
    target_compile_options(dms_settings INTERFACE -fsanitize=fuzzer-no-link)
  endif()
endif()

find_program(DMS_CCACHE ccache)
if(DMS_CCACHE)
  # Precompiled headers are cached only with these two allowances (ccache manual, "Precompiled headers").
  set(CMAKE_CXX_COMPILER_LAUNCHER ${CMAKE_COMMAND} -E env
      CCACHE_SLOPPINESS=pch_defines,time_macros,include_file_mtime,include_file_ctime ${DMS_CCACHE})
  target_compile_options(dms_settings INTERFACE $<$<CXX_COMPILER_ID:GNU>:-fpch-preprocess>)
endif()
find_program(DMS_MOLD mold)
if(DMS_MOLD)
  target_link_options(dms_settings INTERFACE -fuse-ld=mold)
endif()
