# Sourced by the scripts here, and by you where setup.sh says so: where the tools are when they could not be installed
# for the whole machine.  setup.sh then unpacks the distribution's packages into the per-user cache.
DMS_CACHE=${XDG_CACHE_HOME:-$HOME/.cache}/dms-retrofit
DMS_PREFIX=$DMS_CACHE/packages/root

if [ -d "$DMS_PREFIX/usr" ]; then
  dms_triplet=$(gcc -print-multiarch 2>/dev/null || uname -m)
  export PATH="$DMS_PREFIX/usr/bin:$PATH"
  export LD_LIBRARY_PATH="$DMS_PREFIX/usr/lib/$dms_triplet${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}"
  export PKG_CONFIG_PATH="$DMS_PREFIX/usr/lib/$dms_triplet/pkgconfig:$DMS_PREFIX/usr/share/pkgconfig${PKG_CONFIG_PATH:+:$PKG_CONFIG_PATH}"
  unset dms_triplet
fi
