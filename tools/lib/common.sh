# Shell functions that tools/demo and tools/test share: talking to the user, distribution packages, builds.
# Sourced by bash, with -euo pipefail in force; the caller sets nothing beforehand.

top=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)

# The system's own tools come first: a private Python or compiler in front of them (pyenv, conda) knows nothing of the
# distribution's packages. Daemons live in sbin, which a plain user's PATH leaves out.
export PATH="/usr/sbin:/usr/bin:/sbin:/bin:$PATH"
unset PYTHONPATH PYTHONHOME

if [ -t 1 ] && [ -z "${NO_COLOR:-}" ]; then
  bold=$'\e[1m' dim=$'\e[2m' red=$'\e[31m' green=$'\e[32m' plain=$'\e[0m'
else
  bold='' dim='' red='' green='' plain=''
fi

heading() { printf '\n%s== %s%s\n' "$bold" "$*" "$plain"; }
say() { printf '%s\n' "$*"; }
die() {
  printf '%s%s: %s%s\n' "$red" "${0##*/}" "$*" "$plain" >&2
  exit 1
}

# Runs a command as root: directly, or through sudo.
as_root() {
  if [ "$(id -u)" = 0 ]; then
    "$@"
  elif command -v sudo >/dev/null; then
    sudo -- "$@"
  else
    die "this needs root (${1##*/}): run it as root, or install sudo"
  fi
}

# ---------------------------------------------------------------------------------------------- packages

apt_get() { as_root env DEBIAN_FRONTEND=noninteractive apt-get -qq -o Dpkg::Use-Pty=0 "$@" </dev/null; }

apt_lists_fresh=no
refresh_apt_lists() {
  [ "$apt_lists_fresh" = no ] || return 0
  say "Reading the package lists (apt-get update)."
  apt_get update || say "apt-get update has had trouble (see above); going on with the lists there are."
  apt_lists_fresh=yes
}

installed() { [ "$(dpkg-query -W -f '${db:Status-Status}' "$1" 2>/dev/null)" = installed ]; }
# The version apt would install of a package; empty if it knows none.
candidate() { LC_ALL=C apt-cache policy "$1" 2>/dev/null | sed -n 's/^  Candidate: //p' | grep -vx '(none)' || true; }
at_least() { [ -n "$1" ] && dpkg --compare-versions "$1" ge "$2"; }

# Each word is a package, or alternatives "a|b" of which the first that apt knows is taken. Installs what is missing.
install_packages() {
  local want alternative found missing=()
  for want in "$@"; do
    found=no
    for alternative in ${want//|/ }; do
      if installed "$alternative"; then
        found=yes
        break
      fi
    done
    [ "$found" = yes ] || missing+=("$want")
  done
  [ ${#missing[@]} -gt 0 ] || return 0

  refresh_apt_lists
  local names=()
  for want in "${missing[@]}"; do
    found=''
    for alternative in ${want//|/ }; do
      if [ -n "$(candidate "$alternative")" ]; then
        found=$alternative
        break
      fi
    done
    [ -n "$found" ] || die "no package source of this machine offers '${want//|/\' or \'}' (on Ubuntu: is 'universe' enabled?)"
    names+=("$found")
  done
  say "Installing: ${names[*]}"
  local log
  log=$(mktemp)
  if ! apt_get install -y --no-remove --no-install-recommends "${names[@]}" >"$log" 2>&1; then
    tail -n 20 "$log" >&2
    die "apt-get cannot install these packages (see above); nothing was removed to make room for them"
  fi
  rm -f "$log"
}

# The same where a package source of this machine offers all of them; nothing otherwise.
install_if_offered() {
  local p
  for p in "$@"; do installed "$p" || refresh_apt_lists; done
  for p in "$@"; do installed "$p" || [ -n "$(candidate "$p")" ] || return 0; done
  install_packages "$@"
}

# Boost 1.83 is the first whose io_uring back end can be trusted (CONTRIBUTING.md says why). Debian 13 and Ubuntu 24.04
# have it; on Debian 12 it is in backports, whose source we add, derived from the machine's own.
install_boost() {
  local least=1.83 parts="" suffix
  boost_of() { printf 'libboost%s-dev libboost-program-options%s-dev libboost-json%s-dev' "$1" "$1" "$1"; }
  boost_offered() {
    for suffix in "" 1.83; do
      if at_least "$(candidate "libboost$suffix-dev")" "$least"; then
        parts=$(boost_of "$suffix")
        return 0
      fi
    done
    return 1
  }
  # shellcheck disable=SC2086
  for suffix in 1.83 ""; do
    local all=yes part
    for part in $(boost_of "$suffix"); do
      installed "$part" && at_least "$(dpkg-query -W -f '${Version}' "$part")" "$least" || all=no
    done
    [ "$all" = no ] || return 0
  done
  refresh_apt_lists
  boost_offered || { add_backports && boost_offered; } \
    || die "Boost $least or newer is needed, and no package source of this machine offers it"
  # shellcheck disable=SC2086
  install_packages $parts
}

add_backports() {
  local id codename uri list=/etc/apt/sources.list.d/vtpmd-backports.list keyring=/usr/share/keyrings/debian-archive-keyring.gpg
  id=$(. /etc/os-release && echo "$ID")
  codename=$(. /etc/os-release && echo "${VERSION_CODENAME:-}")
  [ "$id" = debian ] && [ -n "$codename" ] || return 1
  uri=$(apt-get indextargets --format '$(ORIGIN) $(CODENAME) $(COMPONENT) $(REPO_URI)' 'Created-By: Packages' \
    | sed -n "s/^Debian $codename main //p" | sort -u | head -n 1)
  [ -n "$uri" ] || return 1
  say "This $id ($codename) has no Boost 1.83 of its own; its backports do. Adding the package source"
  say "  ${bold}$codename-backports${plain}, from where this machine gets the rest of Debian, as $list"
  say "  (apt takes from it only what is asked for by name or not to be had elsewhere; delete the file to undo this)."
  local signed=''
  [ ! -e "$keyring" ] || signed="[signed-by=$keyring] "
  printf 'deb %s%s %s-backports main\n' "$signed" "$uri" "$codename" | as_root tee "$list" >/dev/null
  apt_get update || true
  if [ -z "$(candidate libboost1.83-dev)" ]; then
    as_root rm -f "$list"
    die "the mirror this machine uses has no $codename-backports (see above); the package source was taken out again"
  fi
}

need_debian() {
  command -v apt-get >/dev/null && command -v dpkg-query >/dev/null \
    || die "this sets up a Debian or Ubuntu machine; CONTRIBUTING.md lists what to install elsewhere"
}

build_packages=(g++ pkg-config meson ninja-build python3 libfmt-dev libssl-dev liburing-dev libtpms-dev libtss2-dev
  libsystemd-dev libxen-dev doctest-dev libcli11-dev ca-certificates)
demo_packages=(swtpm swtpm-tools tpm2-tools tpm-tools trousers)
# What tests/integration drives the product with, beside the demo's.
test_packages=("${demo_packages[@]}" git ccache openssl util-linux iproute2 systemd procps man-db e2fsprogs)
lint_packages=(clang-format-14 clang-tidy-14)
second_packages=(clang-14 libclang-rt-14-dev lld-14)
# For tests/xen, which downloads and unpacks Xen and a kernel by itself, and installs neither.
xen_packages=(qemu-system-x86 busybox-static binutils zstd)
# A host with systemd in a container: what makes and boots it, and what README's lines are tried with.
systemd_packages=(debootstrap systemd-container git ccache tpm2-tools curl)
# A domain: the daemon, virsh, the emulator, and what libvirt stops swtpm with.
libvirt_packages=(libvirt-daemon-system libvirt-clients qemu-system-x86 seabios swtpm swtpm-tools)

# ---------------------------------------------------------------------------------------------- builds

# Where ccache is installed Meson uses it; with these it also remembers what was compiled with a precompiled header, and in
# another checkout.
export CCACHE_SLOPPINESS="${CCACHE_SLOPPINESS:-pch_defines,time_macros}" CCACHE_NOHASHDIR="${CCACHE_NOHASHDIR:-1}"

# Most of a compiler's time goes into the headers of Asio and fmt: eight sources compiled as one take a third of it, 32 again
# a third less, 96 an eighth less than those, where each compiler may have the two or four gigabytes that this needs. A
# directory that is there already stays as its owner made it.
# unity DIR: fills the array of that name.
unity() {
  local together=8 free
  free=$(sed -n 's/^MemAvailable: *\([0-9]*\) kB$/\1/p' /proc/meminfo)
  free=$((${free:-0} / ($(nproc) + 2)))
  [ "$free" -lt 2097152 ] || together=32
  [ "$free" -lt 4194304 ] || together=96
  unity=(-Dunity=on "-Dunity_size=$together")
  [ ! -e "$1/build.ninja" ] || unity=()
}

# configure DIR OPTION...: a Meson build directory with exactly these options, whatever it was before.
configure() {
  local dir=$1 log
  shift
  log=$(mktemp)
  local how=()
  [ ! -e "$dir/build.ninja" ] || how=(--reconfigure)
  if ! /usr/bin/meson setup "${how[@]}" "$dir" "$top" "$@" >"$log" 2>&1 </dev/null; then
    # A directory of another compiler or Meson version cannot be reconfigured: start it again.
    if [ ${#how[@]} -eq 0 ] || ! /usr/bin/meson setup --wipe "$dir" "$top" "$@" >"$log" 2>&1 </dev/null; then
      cat "$log" >&2
      rm -f "$log"
      return 1
    fi
  fi
  rm -f "$log"
}

# with_second COMMAND...: COMMAND in which a new build directory is made for clang 14 and its linker, where they are installed
# beside GCC 12, whose library clang 14 knows. With sanitizers it compiles twice as fast; and what is tested has been through
# two compilers.
with_second() {
  local cache=''
  if ! is_gcc_12 || ! command -v clang++-14 >/dev/null || ! command -v ld.lld-14 >/dev/null ||
    ! compgen -G '/usr/lib/llvm-14/lib/clang/*/lib/linux/libclang_rt.asan-*' >/dev/null; then
    "$@"
    return
  fi
  ! command -v ccache >/dev/null || cache='ccache '
  CXX="${cache}clang++-14" CXX_LD=lld "$@"
}

# Warnings are errors with the compilers that the code is kept clean for; a newer one's new warnings stop nobody.
is_gcc_12() { [ "$(g++ -dumpversion 2>/dev/null | cut -d. -f1)" = 12 ]; }
strict_warnings() { if is_gcc_12; then echo true; else echo false; fi; }

# compile DIR [TARGET...]: quiet unless it fails. It gives way to others by `niceness`, if that is set.
compile() {
  local dir=$1 log status=0
  shift
  log=$(mktemp)
  if [ -t 1 ]; then
    nice -n "${niceness:-0}" ninja -C "$dir" "$@" </dev/null | tee "$log" | while IFS= read -r line; do
      case "$line" in '['*) printf '\r\e[K%s%.70s%s' "$dim" "$line" "$plain" ;; esac
    done || status=1
    printf '\r\e[K'
  else
    nice -n "${niceness:-0}" ninja -C "$dir" "$@" >"$log" 2>&1 </dev/null || status=1
  fi
  [ "$status" = 0 ] || grep -vE '^\[[0-9]+/[0-9]+\] (Compiling|Linking|Generating)' "$log" | tail -n 60 >&2
  rm -f "$log"
  return "$status"
}
