#!/usr/bin/env bash
# Downloads Debian/Ubuntu packages as .deb files into DIR, with or without root, without installing them.
#   tools/download_debs.sh [--with-dependencies] DIR PACKAGE...
# Uses the system's package lists; where there are none (a fresh container, no root), fetches private ones into the
# per-user cache.  Packages whose .deb is in DIR already are not downloaded again.  --with-dependencies adds what the
# packages need and this machine has not installed.
set -euo pipefail

with_dependencies=no
if [ "${1:-}" = --with-dependencies ]; then
  with_dependencies=yes
  shift
fi
[ $# -ge 2 ] || { sed -n '2,6s/^# //p' "$0" >&2; exit 2; }
mkdir -p "$1"
directory=$(cd "$1" && pwd)
shift
packages=("$@")
command -v apt-get >/dev/null || { echo "download_debs.sh: apt-get not found: not Debian or Ubuntu?" >&2; exit 1; }

options=(-qq -o APT::Sandbox::User=)

# Nothing but PACKAGEs that DIR already has?  Then apt is not asked at all.
find_missing() {
  local package
  missing=()
  for package in "$@"; do
    compgen -G "$directory/${package}_*.deb" >/dev/null || missing+=("$package")
  done
}

use_package_lists() {
  apt-get "${options[@]}" download --print-uris "${packages[0]}" >/dev/null 2>&1 && return
  local state=${XDG_CACHE_HOME:-$HOME/.cache}/dms-retrofit/apt
  mkdir -p "$state/lists/partial" "$state/archives/partial"
  options+=(-o "Dir::State::Lists=$state/lists" -o "Dir::Cache=$state")
  apt-get "${options[@]}" download --print-uris "${packages[0]}" >/dev/null 2>&1 && return
  echo "fetching package lists"
  apt-get "${options[@]}" update
}

find_missing "${packages[@]}"
if [ ${#missing[@]} -gt 0 ]; then
  use_package_lists
  if [ "$with_dependencies" = yes ]; then
    # Lines of a simulated installation: "Inst NAME (VERSION ...)" for a new package, "Inst NAME [OLD] (...)" for an
    # upgrade, which is left out: the installed version serves.
    plan=$(apt-get "${options[@]}" --no-install-recommends --simulate install "${packages[@]}")
    mapfile -t packages < <(sed -n 's/^Inst \([^ ]*\) (.*/\1/p' <<<"$plan")
    find_missing "${packages[@]}"
  fi
fi
[ ${#missing[@]} -gt 0 ] || exit 0

# Staged, so that an interrupted download is not taken for a package.
staging=$(mktemp -d "$directory/.partial-XXXXXX")
trap 'rm -rf "$staging"' EXIT
(cd "$staging" && apt-get "${options[@]}" download "${missing[@]}")
mv "$staging"/*.deb "$directory"/
