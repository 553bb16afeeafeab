#!/usr/bin/env bash
# Fetches what tests/emulation needs to run Python as on other processors, into $EDGE_EFFDET_EMULATION or ~/.cache/edge_effdet-emulation:
#
#   qemu-x86_64, qemu-aarch64   QEMU 10 of Debian 13, on which this machine's own Python and an arm64 one run
#   qemu-aarch64-7              QEMU 7.2 of Debian 12, which computes OpenVINO's INT8 wrongly where it emulates SVE: what must be refused
#   arm64/                      Debian 12's Python for arm64, and in arm64/opt/device the wheels that a device installs
#
# The packages come from where this machine's own do, with the name of the release replaced. Nothing is installed, nothing is run on
# another processor, and no root is needed. A second call finds everything in place.
#
#   tests/emulation/install.sh [PYTHON]      PYTHON has pip (default: .venv/bin/python where it is, else python3)
set -euo pipefail
cd "$(dirname "$0")/../.."

fail() {
  echo "tests/emulation/install.sh: $1" >&2
  exit 1
}

folder=${EDGE_EFFDET_EMULATION:-${HOME:?}/.cache/edge_effdet-emulation}
# A change of this file or of the pinned versions fetches everything anew.
version=$(cat tests/emulation/install.sh constraints.txt | sha256sum | cut -c1-16)
if [ "$(cat "$folder/version" 2>/dev/null)" = "$version" ]; then
  exit 0
fi

python=${1:-.venv/bin/python}
[ -n "${1:-}" ] || [ -x "$python" ] || python=python3
"$python" -m pip --version >/dev/null 2>&1 || fail "$python has no pip; run make .venv/bin/python first."
[ "$(uname -s) $(uname -m)" = "Linux x86_64" ] || fail "the emulators are for Linux on x86-64, and this is $(uname -s) on $(uname -m)."
release=$(. /etc/os-release && [ "${ID:-}" = debian ] && echo "${VERSION_CODENAME:-}") || release=""
[ -n "$release" ] || fail "the emulators come as packages of Debian, and this machine runs another system."

mkdir -p "$(dirname "$folder")"
# Beside the folder that it becomes, so that a run that is interrupted leaves nothing that looks complete.
new=$(mktemp -d "$folder.XXXXXX")
trap 'kill $(jobs -p) 2>/dev/null || true; rm -rf "$new"' EXIT
packages=$new/apt/cache/archives
mkdir -p "$new"/apt/sources "$new"/apt/lists/partial "$packages"/partial "$new"/arm64/opt/device "$new"/arm64/proc
touch "$new/apt/status"

# The sources of this machine's own release, without its updates' and third parties': blocks of .sources files, lines of .list files.
own_sources() {
  local file
  for file in /etc/apt/sources.list.d/*.sources; do
    [ ! -e "$file" ] || awk -v RS= -v ORS='\n\n' -v "name=$release" '$0 ~ "(^|\n)Suites:([^\n]* )?" name "( |\n|$)"' "$file"
  done
}
own_lines() {
  local file
  for file in /etc/apt/sources.list /etc/apt/sources.list.d/*.list; do
    [ ! -e "$file" ] || grep -E "^deb +(\[[^]]*\] +)?[^ ]+ +$release " "$file" || true
  done
}
for name in bookworm trixie; do
  own_sources | sed "s/\b$release\b/$name/g" >"$new/apt/sources/$name.sources"
  own_lines | sed "s/\b$release\b/$name/g" >"$new/apt/sources/$name.list"
done
[ -n "$(cat "$new"/apt/sources/*)" ] || fail "apt has no source of Debian $release here, from which those of the emulators follow."

# Read after the machine's own configuration, whose proxies stay and whose hooks go.
cat >"$new/apt/apt.conf" <<CONF
Dir::Etc::sourcelist "/dev/null";
Dir::Etc::sourceparts "$new/apt/sources";
Dir::State::lists "$new/apt/lists";
Dir::State::status "$new/apt/status";
Dir::Cache "$new/apt/cache";
APT::Architectures { "amd64"; "arm64"; };
APT::Install-Recommends "false";
APT::Sandbox::User "";
Acquire::Languages "none";
APT::Update::Error-Mode "any";
#clear APT::Update::Post-Invoke;
#clear APT::Update::Post-Invoke-Success;
#clear Acquire::IndexTargets;
Acquire::IndexTargets::deb::Packages { MetaKey "\$(COMPONENT)/binary-\$(ARCHITECTURE)/Packages"; ShortDescription "Packages"; Description "\$(RELEASE)/\$(COMPONENT) \$(ARCHITECTURE) Packages"; };
CONF
run_apt() {
  local log
  log=$(cd "$packages" && apt-get -qq -c "$new/apt/apt.conf" "$@" 2>&1) ||
    fail "apt-get $1 of the emulators' packages failed ($(tail -n 1 <<<"$log"))."
}

# The network is idle while packages are unpacked, so the wheels come beside them.
platforms=(--platform manylinux2014_aarch64)
for glibc in 17 26 27 28 31 34 35; do
  platforms+=(--platform "manylinux_2_${glibc}_aarch64")
done
"$python" -m pip --quiet --disable-pip-version-check install --no-compile --target "$new/arm64/opt/device" \
  --only-binary :all: --implementation cp --python-version 3.11 "${platforms[@]}" -c constraints.txt \
  numpy pillow onnxruntime openvino >"$new/pip.log" 2>&1 &
jobs=($!)

run_apt update
run_apt download qemu-user/trixie qemu-user-static/bookworm
dpkg-deb --fsys-tarfile "$packages"/qemu-user_*.deb |
  tar -x --strip-components=3 -C "$new" ./usr/bin/qemu-x86_64 ./usr/bin/qemu-aarch64 &
jobs+=($!)
dpkg-deb --fsys-tarfile "$packages"/qemu-user-static_*.deb |
  tar -x --strip-components=3 -C "$new" --transform=s/-static/-7/ ./usr/bin/qemu-aarch64-static &
jobs+=($!)
run_apt install --yes --download-only -o APT::Architecture=arm64 -t bookworm python3.11-minimal libpython3.11-stdlib libstdc++6
for package in "$packages"/*_arm64.deb; do
  dpkg-deb -x "$package" "$new/arm64"
done
# QEMU 7.2 shows programs the file of the machine below, an x86 one, on which onnxruntime crashes. QEMU 10 has its own.
for ((cpu = 0; cpu < $(nproc --all); cpu++)); do
  printf 'processor\t: %d\nFeatures\t: fp asimd asimdhp asimddp\nCPU implementer\t: 0x41\nCPU architecture: 8\nCPU part\t: 0xd0b\n\n' "$cpu"
done >"$new/arm64/proc/cpuinfo"

wait "${jobs[0]}" || fail "pip could not fetch the wheels for arm64 ($(grep ERROR "$new/pip.log" | tail -n 1))."
for job in "${jobs[@]:1}"; do
  wait "$job" || fail "the emulators' packages could not be unpacked into $new."
done
# Bytecode does not depend on the processor. Without it each start under emulation compiles its imports.
if "$python" -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))'; then
  "$python" -m compileall -q -x '/tests?/' "$new/arm64/usr/lib/python3.11" "$new/arm64/opt/device" >/dev/null || true
fi

rm -rf "$new/apt" "$new/pip.log" "$folder"
echo "$version" >"$new/version"
chmod 755 "$new"
mv "$new" "$folder"
trap - EXIT
