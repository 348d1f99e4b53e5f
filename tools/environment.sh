# shellcheck shell=bash
# Sourced by the scripts here, and by you where setup.sh says so: where the tools are when they could not be installed
# for the whole machine.  setup.sh then unpacks the distribution's packages into the per-user cache.
DMS_CACHE=${XDG_CACHE_HOME:-$HOME/.cache}/dms-retrofit
DMS_PREFIX=$DMS_CACHE/packages/root

if [ -d "$DMS_PREFIX/usr" ]; then
  dms_triplet=$(gcc -print-multiarch 2>/dev/null || echo "$(uname -m)-linux-gnu")
  dms_libraries=$DMS_PREFIX/usr/lib/$dms_triplet
  dms_headers=$DMS_PREFIX/usr/include/$dms_triplet:$DMS_PREFIX/usr/include
  export DMS_PREFIX  # tools/cmake/Dependencies.cmake asks for it
  export PATH="$DMS_PREFIX/usr/bin:$PATH"
  export LD_LIBRARY_PATH="$dms_libraries${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}"
  export PKG_CONFIG_PATH="$dms_libraries/pkgconfig:$DMS_PREFIX/usr/share/pkgconfig${PKG_CONFIG_PATH:+:$PKG_CONFIG_PATH}"
  export CMAKE_PREFIX_PATH="$DMS_PREFIX/usr${CMAKE_PREFIX_PATH:+:$CMAKE_PREFIX_PATH}"
  export CPLUS_INCLUDE_PATH="$dms_headers${CPLUS_INCLUDE_PATH:+:$CPLUS_INCLUDE_PATH}"
  unset dms_triplet dms_libraries dms_headers
fi
