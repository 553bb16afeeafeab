#!/bin/sh
# The GPU check on a bare machine: what can be had of what it needs, and the check.
#   sh benchmarks/gpu_check.sh --minutes 8                          with an index of packages: an environment that sees the machine's own torch
#   sh benchmarks/gpu_check.sh --wheels runs/gpu-check --minutes 8  without one: the parts that benchmarks/gpu_check_wheels.py made, as far as they are here
# PYTHON names the interpreter that has torch. What cannot be installed is named, and the parts that need it are skipped.
set -u
cd "$(dirname "$0")/.." || exit 2
python=${PYTHON:-python3}

if [ "${1:-}" = --wheels ]; then
    folder=${2:?"--wheels wants the folder of the parts"}
    shift 2
    "$python" benchmarks/gpu_check_wheels.py join "$folder" || exit 2
    set -- --work "$folder/work" "$@"
    # A folder and not an environment: that needs ensurepip, which a system's Python may lack. What is in it comes before the machine's own packages.
    site=$folder/site
    for wheel in "$folder"/wheels/*.whl; do
        [ -e "$wheel.installed" ] || echo "$wheel"
    done >"$folder/new.txt"
    if [ -s "$folder/new.txt" ]; then
        xargs -d '\n' "$python" -m pip install --quiet --disable-pip-version-check --no-index --no-deps --no-compile --upgrade --target "$site" \
            <"$folder/new.txt" || exit 2
        sed 's/$/.installed/' "$folder/new.txt" | xargs -d '\n' touch
    fi
    case $site in /*) ;; *) site=$PWD/$site ;; esac
    PYTHONPATH=$site${PYTHONPATH:+:$PYTHONPATH} exec "$python" -m benchmarks.gpu_check "$@"
fi

environment=${GPU_CHECK_ENV:-runs/gpu-check-env}
run="$environment/bin/python"

"$python" -m venv "$environment" || exit 2
# Not --system-site-packages: where torch is in an environment itself, that would name another folder than torch's.
"$python" -c 'import site; print(*site.getsitepackages(), sep="\n")' > "$("$run" -c 'import site; print(site.getsitepackages()[0])')/machine.pth"
# Whatever is installed, torch stays the machine's.
"$python" -c 'import torch; print("torch==" + torch.__version__)' > "$environment/constraints.txt" || exit 2
export PIP_CONSTRAINT="$PWD/$environment/constraints.txt" PIP_RETRIES=1 PIP_DEFAULT_TIMEOUT=15
case $environment in /*) PIP_CONSTRAINT="$environment/constraints.txt" ;; esac

# Of each pair the name to import and the name to install.
install() {
    "$run" -c "import $1" 2>/dev/null && return
    shift
    "$run" -m pip install --quiet --disable-pip-version-check "$@" || echo "could not install $*" >&2
}

for package in effdet timm safetensors accelerate onnx onnx_ir onnxscript onnxruntime tqdm pytest pytest_timeout lief cppimport onnx_graphsurgeon onnxconverter_common onnxslim polygraphy requests; do
    install "$package" "$package"
done
install skimage scikit-image
install yaml pyyaml
install modelopt nvidia-modelopt
if ldconfig -p | grep -q 'libcuda\.so\.1'; then
    install cuda.bindings cuda-bindings
    # PyCUDA is compiled with the toolkit's headers.
    CUDA_ROOT=${CUDA_ROOT:-/usr/local/cuda}
    export CUDA_ROOT PATH="$CUDA_ROOT/bin:$PATH"
    install pycuda.driver pycuda
    install tensorrt tensorrt
    [ "$(uname -m)" = x86_64 ] && install tensorrt_rtx tensorrt-rtx
else
    echo "no NVIDIA driver (libcuda.so.1) here, so neither PyCUDA nor TensorRT is installed" >&2
fi

exec "$run" -m benchmarks.gpu_check "$@"
