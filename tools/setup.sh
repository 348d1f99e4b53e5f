#!/usr/bin/env bash
# Installs what is missing to build and run, and says what it does.  With everything there it takes under a second.
#   tools/setup.sh               compiler, libraries, LibTorch, and what the sample model's import needs
#   tools/setup.sh --reference   also the Python libraries that the reference tests compare with (5 GB with CUDA's)
#   tools/setup.sh --fuzz        also clang with its sanitizers, for tests/fuzz/run.sh
#
# Debian or Ubuntu packages are installed with apt as root or through passwordless sudo; without either they are
# unpacked into the per-user cache (tools/environment.sh points there).  A compiler, git and Python must then be there.
#
# LibTorch is the PyPI wheel of torch, in a virtual environment in the per-user cache that .venv links to, so another
# clone downloads nothing.  A CPU-only program needs the wheel without most of its dependencies; with a GPU present (or
# --reference) they come too.  A torch of the right version in the python3 on PATH, or at TORCH_ROOT (.../torch) or
# Torch_DIR (.../torch/share/cmake/Torch) in the environment, is used instead of downloading one.
set -euo pipefail

TORCH_VERSION=2.11.0
# What libtorch_cpu.so itself is linked against; a newer torch names others (readelf -d libtorch_cpu.so).
TORCH_CPU_LIBRARIES=(nvidia-cuda-runtime==13.0.96 nvidia-cuda-cupti==13.0.85)
# Reference libraries without their dependencies: fastdms wants flash-attn, which is built against a CUDA toolkit, but
# what the tests use of it does not.  lm-eval, lighteval: only their graders are wanted, the latter's with what parses LaTeX.
REFERENCE_ALONE=(fastdms==0.2.0 lm-eval==0.4.13 lighteval==0.13.0 latex2sympy2_extended==1.0.6
  antlr4-python3-runtime==4.13.2)

repository=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
# shellcheck source=tools/environment.sh
source "$repository/tools/environment.sh"

reference=no
fuzz=no
case "${1:-}" in
  "") ;;
  --reference) reference=yes ;;
  --fuzz) fuzz=yes ;;
  *) sed -n '2,14s/^# \{0,1\}//p' "$0"; [ "$1" = --help ] && exit 0 || exit 2 ;;
esac

say() { echo "setup: $*"; }
fail() { echo "setup: $*" >&2; exit 1; }

# --- the distribution's packages ---

# Package, and how we know that it is there: a command, or a header below an include directory.
needed_packages() {
  cat <<'TABLE'
g++ command g++
cmake command cmake
ninja-build command ninja
ccache command ccache
mold command mold
git command git
pkg-config command pkg-config
python3 command python3
python3-venv module ensurepip
libhdf5-dev header hdf5/serial/hdf5.h
libyaml-cpp-dev header yaml-cpp/yaml.h
libcli11-dev header CLI/CLI.hpp
libgtest-dev header gtest/gtest.h
nlohmann-json3-dev header nlohmann/json.hpp
libpcre2-dev header pcre2.h
libutf8proc-dev header utf8proc.h
libssl-dev header openssl/evp.h
zlib1g-dev header zlib.h
libprotozero-dev header protozero/pbf_builder.hpp
libgloo-dev header gloo/config.h
TABLE
  if [ "$fuzz" = yes ]; then
    echo "clang command clang++"
    echo "libclang-rt-dev glob /usr/lib/llvm-*/lib/clang/*/lib/linux/libclang_rt.fuzzer-*.a"
  fi
}

is_there() {
  local directory
  case "$1" in
    command) command -v "$2" >/dev/null ;;
    module) python3 -c "import $2" 2>/dev/null ;;
    glob) compgen -G "$2" >/dev/null ;;
    header)
      for directory in /usr/include /usr/local/include "$DMS_PREFIX/usr/include"; do
        [ -e "$directory/$2" ] && return 0
      done
      return 1 ;;
  esac
}

missing_packages() {
  local package kind what
  while read -r package kind what; do
    is_there "$kind" "$what" || echo "$package"
  done < <(needed_packages)
}

install_as_root() {  # the command prefix ("" or "sudo -n"), then packages
  local prefix=$1
  shift
  # shellcheck disable=SC2086
  apt() { DEBIAN_FRONTEND=noninteractive $prefix apt-get -qq -o Dpkg::Use-Pty=0 "$@"; }
  say "installing ${*}"
  apt install -y --no-install-recommends "$@" >/dev/null 2>&1 && return
  apt update
  apt install -y --no-install-recommends "$@" >/dev/null
}

# Unpacks packages and what they depend on into $DMS_PREFIX.
unpack_packages() {
  local deb
  say "no root: unpacking ${*} into $DMS_PREFIX"
  "$repository/tools/download_debs.sh" --with-dependencies "$DMS_CACHE/packages/debs" "$@"
  for deb in "$DMS_CACHE"/packages/debs/*.deb; do
    dpkg-deb -x "$deb" "$DMS_PREFIX"
  done
  # Their pkg-config files name places below /usr.
  find "$DMS_PREFIX/usr" -name '*.pc' -type f -exec sed -i -E "s#(=|-I|-L)/usr#\\1$DMS_PREFIX/usr#g" {} +
  say "before you call cmake yourself, 'source tools/environment.sh'"
}

install_packages() {
  local missing
  mapfile -t missing < <(missing_packages)
  [ ${#missing[@]} -gt 0 ] || return 0
  local command="apt-get install --no-install-recommends ${missing[*]}"
  command -v apt-get >/dev/null || fail "this machine has no apt; please install the equivalents of: ${missing[*]}"
  if [ "$(id -u)" = 0 ]; then
    install_as_root "" "${missing[@]}"
  elif sudo -n true 2>/dev/null; then
    install_as_root "sudo -n" "${missing[@]}"
  else
    # These work only where they are meant to be; everything else can be unpacked anywhere.
    local package
    for package in "${missing[@]}"; do
      case "$package" in
        g++ | git | python3 | python3-venv) fail "missing: ${missing[*]}
  No root and no passwordless sudo, and $package cannot be used unpacked.  Ask an administrator to run:
    $command" ;;
      esac
    done
    unpack_packages "${missing[@]}" || fail "could not get: ${missing[*]}
  Ask an administrator to run:
    $command"
    source "$repository/tools/environment.sh"
  fi
  mapfile -t missing < <(missing_packages)
  [ ${#missing[@]} = 0 ] || fail "still missing after installation: ${missing[*]}"
}

at_least() {  # what, found version, wanted version
  [ "$(printf '%s\n' "$3" "$2" | sort -V | head -n 1)" = "$3" ] || fail "$1 is $2, but $3 or newer is needed"
}

# --- LibTorch and Python ---

has_gpu() { [ -e /dev/nvidia0 ] || { command -v nvidia-smi >/dev/null && nvidia-smi -L >/dev/null 2>&1; }; }

# Finds the python3 to build on: the one on PATH, or the one below it if that is an environment made here.
find_python() {
  python=$(python3 -c 'import os, sys
inside = os.path.realpath(sys.prefix).startswith(os.path.realpath(sys.argv[1]) + os.sep)
print(sys._base_executable if inside else sys.executable)' "$DMS_CACHE")
  python_version=$("$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])')
  at_least "$python" "$python_version" 3.11
}

# Prints the directory from which $python imports a torch of the right version; nothing if it has none.
torch_of_python() {
  "$python" -c "import importlib.metadata as m
try: torch = m.distribution('torch')
except m.PackageNotFoundError: raise SystemExit
if torch.version.split('+')[0] == '$TORCH_VERSION': print(torch.locate_file(''))"
}

pip_install() { "$venv/bin/python3" -m pip install --quiet --progress-bar off --disable-pip-version-check --no-input "$@"; }

# Runs an installation step once for each content of what it installs.
once() {  # name, content, command...
  local stamp="$venv/dms-$1" content=$2
  shift 2
  [ "$(cat "$stamp" 2>/dev/null)" = "$content" ] && return
  "$@"
  echo "$content" >"$stamp"
}

install_torch_alone() {
  say "installing torch $TORCH_VERSION without its dependencies (0.6 GB)"
  pip_install --no-compile --no-deps "torch==$TORCH_VERSION" "${TORCH_CPU_LIBRARIES[@]}"
}
install_torch_with_dependencies() {
  say "installing torch $TORCH_VERSION with its dependencies (CUDA's libraries: 3 GB)"
  pip_install "torch==$TORCH_VERSION"
}
share_packages() {
  say "using the torch $TORCH_VERSION in $1"
  echo "$1" >"$venv/lib/python$python_version/site-packages/shared-torch.pth"
}
install_requirements() {
  say "installing Python packages: $(grep -hv '^[#-]' "$1" | tr '\n' ' ')"
  pip_install -r "$1"
}

install_reference_alone() {
  say "installing without dependencies: ${REFERENCE_ALONE[*]}"
  pip_install --no-deps "${REFERENCE_ALONE[@]}"
}

install_python() {
  find_python
  local full=no suffix="" shared given_torch=${TORCH_ROOT:-${Torch_DIR:-}}
  if [ "$reference" = yes ] || has_gpu; then full=yes; fi
  shared=$(torch_of_python)
  [ -z "$shared" ] || suffix=-shared
  venv=$DMS_CACHE/venv-py$python_version-torch$TORCH_VERSION$suffix
  mkdir -p "$DMS_CACHE"
  exec 9>"$DMS_CACHE/lock"
  flock 9
  if [ ! -x "$venv/bin/python3" ] || [ ! -d "$venv/lib" ]; then
    say "making $venv"
    "$python" -m venv "$venv"
  fi
  if [ -n "$shared" ]; then
    # Behind the environment's own packages, so that those of the versions wanted here win.
    once torch-shared "$shared" share_packages "$shared"
  elif [ "$full" = yes ] && { [ "$reference" = yes ] || [ -z "$given_torch" ]; }; then
    once torch-full "$TORCH_VERSION" install_torch_with_dependencies
  elif [ -z "$given_torch" ] && [ ! -e "$venv/dms-torch-full" ]; then
    once torch-alone "$TORCH_VERSION ${TORCH_CPU_LIBRARIES[*]}" install_torch_alone
  fi
  local requirements=$repository/tools/requirements
  once base "$(cat "$requirements-base.txt")" install_requirements "$requirements-base.txt"
  if [ "$reference" = yes ]; then
    once reference "$(cat "$requirements-base.txt" "$requirements-reference.txt")" \
      install_requirements "$requirements-reference.txt"
    once reference-alone "${REFERENCE_ALONE[*]}" install_reference_alone
  fi
  exec 9>&-
  if [ -d "$repository/.venv" ] && [ ! -L "$repository/.venv" ]; then
    fail "$repository/.venv is a directory of your own; move it away, setup.sh makes a link there"
  fi
  [ "$(readlink "$repository/.venv" || true)" = "$venv" ] || ln -sfn "$venv" "$repository/.venv"
}

install_packages
at_least g++ "$(g++ -dumpfullversion)" 12
at_least cmake "$(cmake --version | sed -n '1s/.* //p')" 3.25
install_python
say "ready ($(basename "$venv"))"
