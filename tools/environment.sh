# shellcheck shell=bash
# Sourced by the scripts here, and by you where setup.sh says so: where the tools are when they could not be installed
# for the whole machine.  setup.sh then unpacks the distribution's packages into the per-user cache.
DMS_CACHE=${XDG_CACHE_HOME:-$HOME/.cache}/dms-retrofit
DMS_PREFIX=$DMS_CACHE/packages/root

if [ -d "$DMS_PREFIX/usr" ]; then
  dms_libraries=$DMS_PREFIX/usr/lib/$(gcc -print-multiarch 2>/dev/null || echo "$(uname -m)-linux-gnu")
  export DMS_PREFIX  # tools/cmake/Dependencies.cmake asks for it
  export PATH="$DMS_PREFIX/usr/bin:$PATH"
  export LD_LIBRARY_PATH="$dms_libraries${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}"
  export PKG_CONFIG_PATH="$dms_libraries/pkgconfig:$DMS_PREFIX/usr/share/pkgconfig${PKG_CONFIG_PATH:+:$PKG_CONFIG_PATH}"
  export CMAKE_PREFIX_PATH="$DMS_PREFIX/usr${CMAKE_PREFIX_PATH:+:$CMAKE_PREFIX_PATH}"
  unset dms_libraries
fi
