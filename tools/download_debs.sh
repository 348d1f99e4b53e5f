#!/usr/bin/env bash
# Downloads Debian/Ubuntu packages as .deb files into DIR, with or without root, without installing them.
#   tools/download_debs.sh DIR PACKAGE...
# Uses the system's package lists; where there are none (a fresh container, no root), fetches private ones into the
# per-user cache.  Packages whose .deb is in DIR already are not downloaded again.
set -euo pipefail

[ $# -ge 2 ] || { sed -n '2,5s/^# //p' "$0" >&2; exit 2; }
mkdir -p "$1"
directory=$(cd "$1" && pwd)
shift

missing=()
for package in "$@"; do
  compgen -G "$directory/${package}_*.deb" >/dev/null || missing+=("$package")
done
[ ${#missing[@]} -gt 0 ] || exit 0
command -v apt-get >/dev/null || { echo "download_debs.sh: apt-get not found: not Debian or Ubuntu?" >&2; exit 1; }

options=(-qq -o APT::Sandbox::User=)
has_lists() { apt-get "${options[@]}" download --print-uris "${missing[0]}" >/dev/null 2>&1; }
if ! has_lists; then
  state=${XDG_CACHE_HOME:-$HOME/.cache}/dms-retrofit/apt
  mkdir -p "$state/lists/partial" "$state/archives/partial"
  options+=(-o "Dir::State::Lists=$state/lists" -o "Dir::Cache=$state")
  if ! has_lists; then
    echo "fetching package lists"
    apt-get "${options[@]}" update
  fi
fi

# Staged, so that an interrupted download is not taken for a package.
staging=$(mktemp -d "$directory/.partial-XXXXXX")
trap 'rm -rf "$staging"' EXIT
(cd "$staging" && apt-get "${options[@]}" download "${missing[@]}")
mv "$staging"/*.deb "$directory"/
