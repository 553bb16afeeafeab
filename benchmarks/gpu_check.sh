#!/bin/sh
# The GPU check on a bare machine: an environment that sees the machine's own torch, what can be installed into it, the check.
#   sh benchmarks/gpu_check.sh --minutes 25
# PYTHON names the interpreter that has torch. What cannot be installed is named, and the parts that need it are skipped.
set -u
cd "$(dirname "$0")/.." || exit 2
python=${PYTHON:-python3}
environment=${GPU_CHECK_ENV:-.venv-gpu}
"$python" -m venv --system-site-packages "$environment" || exit 2
run="$environment/bin/python"

install() {
    "$run" -m pip install --quiet --disable-pip-version-check "$@" || echo "could not install: $*" >&2
}

# Without dependencies first: they would bring another torch than the machine's. What is missing then is named by the parts.
install --no-deps -e .
install effdet timm omegaconf safetensors onnx onnx-ir onnxscript onnxruntime scikit-image tqdm pytest pytest-timeout
install nvidia-modelopt requests lief cppimport ml-dtypes onnx-graphsurgeon onnxconverter-common onnxslim polygraphy
install cuda-bindings
# PyCUDA is compiled with the toolkit's headers.
CUDA_ROOT=${CUDA_ROOT:-/usr/local/cuda} PATH="${CUDA_ROOT:-/usr/local/cuda}/bin:$PATH" install pycuda
install tensorrt
[ "$(uname -m)" = x86_64 ] && install tensorrt-rtx

exec "$run" -m benchmarks.gpu_check "$@"
