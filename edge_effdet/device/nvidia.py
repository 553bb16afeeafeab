"""What NVIDIA's software on a device is: JetPack, the module, the driver, TensorRT, the CUDA toolkit, and the clocks."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import subprocess
from pathlib import Path

from edge_effdet.device.board import (
    clocks_locked,
    read_l4t,
    read_model,
    read_package,
    read_power_mode,
    read_power_modes,
    recognise_module,
)
from edge_effdet.device.findings import Finding
from edge_effdet.device.interpreter import THIS, DevicePython
from edge_effdet.device.kernel_files import read_text
from edge_effdet.device.targets import HARDWARE, JETPACKS, DeployTarget, JetPack, find_jetpack

LEAST_TENSORRT = (10, 3)
"""The oldest TensorRT that edge_effdet runs on."""

LEAST_COMPUTE_CAPABILITY = (7, 5)
"""The oldest GPU that TensorRT 11 and TensorRT-RTX support."""


def read_jetpack(root: Path) -> JetPack | None:
    """The release of JetPack; None on another machine, or for one that is not listed."""
    l4t = read_l4t(root)
    return None if l4t is None else find_jetpack(l4t)


def check_jetpack(root: Path, target: DeployTarget, jetpack: JetPack | None) -> Finding:
    """Whether the target works on this JetPack."""
    what, l4t = "JetPack", read_l4t(root)
    wanted = f"release {target.jetpacks[0]} to {target.jetpacks[-1]}"
    flash = f"flash the board with one of {', '.join(target.jetpacks)} by NVIDIA's SDK Manager"
    if l4t is None:
        if any((root / name).exists() for name in (".dockerenv", "run/.containerenv")):
            fix = "in a container only the host tells its JetPack, so look there (cat /etc/nv_tegra_release)"
            return Finding(what, "not told", wanted, "warning", fix)
        fix = "install on the Jetson itself, which has /etc/nv_tegra_release, or make a bundle for this machine by another `target`"
        return Finding(what, "missing", wanted, "blocking", fix)
    if jetpack is None:
        found = f"that of Jetson Linux {l4t}"
        if _numbers(l4t) < min(_numbers(each) for name in target.jetpacks for each in JETPACKS[name].l4t):
            return Finding(what, f"too old ({found})", wanted, "blocking", flash)
        fix = "this version of edge_effdet does not know it, so look at the golden check's result with care"
        return Finding(what, found, wanted, "warning", fix)
    found = f"release {jetpack.version} (Jetson Linux {l4t})"
    if jetpack.version in target.jetpacks:
        return Finding(what, found, wanted)
    why = jetpack.unsupported or f"it is not made for {target.title}"
    return Finding(what, f"{found}, which cannot be used because {why},", wanted, "blocking", flash)


def check_module(root: Path, target: DeployTarget) -> Finding:
    """Whether the board has a module of the target."""
    what = "module"
    wanted = " or ".join(HARDWARE[name].title.replace("Jetson ", "") for name in target.modules)
    name = recognise_module(root)
    if name is None:
        fix = "the engine is built and checked here all the same"
        return Finding(what, f"unknown ({read_model(root) or 'no device tree'})", wanted, "warning", fix)
    module = HARDWARE[name]
    found = f"{module.title.replace('Jetson ', '')} (SM {_sm(module.compute_capability)})"
    if name in target.modules:
        return Finding(what, found, wanted)
    if module.compute_capability == HARDWARE[target.modules[0]].compute_capability:
        fix = "its GPU is of the same kind, and the engine is built and checked here, so it works; its speed was estimated for another one"
        return Finding(what, found, wanted, "warning", fix)
    return Finding(what, found, wanted, "blocking", "make a bundle for this module by another `target`")


def check_tensorrt(root: Path, python: DevicePython | None, jetpack: JetPack | None) -> Finding:
    """The TensorRT of apt, which a virtual environment sees with ``--system-site-packages``."""
    what = "TensorRT"
    wanted = f"version {jetpack.tensorrt if jetpack else '.'.join(map(str, LEAST_TENSORRT)) + ' or later'} from apt"
    install = "run sudo apt install python3-libnvinfer, or nvidia-jetpack for all of JetPack"
    version = python and python.version
    by_apt = [root / f"usr/lib/{name}/dist-packages" for name in (f"python{version}", "python3")]
    by_pip = [root / f"usr/local/lib/python{version}/dist-packages"]
    with contextlib.suppress(RuntimeError):
        home = Path.home()
        by_pip.append(root / home.relative_to(home.anchor) / f".local/lib/python{version}/site-packages")
    apt = next((place for place in by_apt if (place / "tensorrt").is_dir()), None)
    pip = next((place for place in by_pip if (place / "tensorrt").is_dir()), None)
    if apt is None:
        found = "missing" if pip is None else f"the one of pip in {pip}"
        return Finding(
            what, found, wanted, "blocking", f"{install}; the tensorrt that pip installs is made for servers"
        )
    # Some containers have its files and not Debian's record of them.
    about = next((each.name for each in apt.glob("tensorrt-*.dist-info")), "")
    packaged = read_package(root, "python3-libnvinfer") or about.replace("tensorrt-", "").replace(".dist-info", "")
    found, numbers = f"version {packaged.split('-')[0] or 'unknown'}", _numbers(packaged)[:2]
    if packaged and numbers < LEAST_TENSORRT:
        return Finding(what, found, wanted, "blocking", "update JetPack, with which it comes")
    reason = None if python is None else _import_error(python.program, "tensorrt")
    if reason is not None:
        fix = "run sudo apt install --reinstall python3-libnvinfer, and look at what python3 -c 'import tensorrt' says"
        return Finding(what, f"{found}, which Python cannot import ({reason}),", wanted, "blocking", fix)
    if pip is not None:
        fix = f"Python takes the one in {pip}, which is made for servers; run python3 -m pip uninstall tensorrt"
        return Finding(what, f"{found}, and the one of pip", wanted, "warning", fix)
    if jetpack and numbers and numbers != _numbers(jetpack.tensorrt)[:2]:
        return Finding(
            what, found, wanted, "warning", f"it is not the one of JetPack {jetpack.version}; the golden check tells"
        )
    return Finding(what, found, wanted)


def check_cuda(root: Path, python: DevicePython | None, jetpack: JetPack | None, target: DeployTarget) -> Finding:
    """Whether the packages of the target that have no wheel can be compiled."""
    what, names = "CUDA toolkit", " and ".join(target.compiled)
    version = python and python.version
    places = (f"usr/lib/python{version}", "usr/lib/python3", f"usr/local/lib/python{version}")
    if target.system_packages and all(
        any((root / place / "dist-packages" / name).is_dir() for place in places) for name in target.compiled
    ):
        return Finding(what, f"not needed, {names} is installed")
    wanted = f"there, to compile {names}"
    nvcc = _find_nvcc(root)
    headers = [
        *(root / "usr/local").glob("cuda*/include/cuda.h"),
        *(root / "usr/local").glob("cuda*/targets/*/include/cuda.h"),
        *(root / "usr/include").glob("cuda.h"),
    ]
    missing = [] if nvcc else ["nvcc"]
    missing += [] if headers else ["cuda.h"]
    toolkit = f"cuda-toolkit-{jetpack.cuda.replace('.', '-')}" if jetpack else "cuda-toolkit of NVIDIA's repository"
    packages = [toolkit] if missing else []
    if not any((root / f"usr/bin/{name}").exists() for name in ("g++", "c++")):
        missing.append("g++")
        packages.append("g++")
    if python is not None and not (python.headers / "Python.h").exists():
        missing.append("Python.h")
        packages.append(f"python{python.version}-dev")
    if missing:
        fix = (
            f"run sudo apt install {' '.join(packages)}: {names} has no wheel for this machine and is compiled; with nvcc outside of "
            "/usr/local/cuda/bin, put its folder into PATH"
        )
        return Finding(what, f"without {', '.join(missing)}", wanted, "blocking", fix)
    assert nvcc is not None
    return Finding(what, f"nvcc in {nvcc.parent}", wanted)


def check_driver(root: Path) -> Finding:
    """Whether a computer has NVIDIA's driver and a GPU that TensorRT supports."""
    what = "NVIDIA driver"
    text = read_text(root / "proc/driver/nvidia/version")
    if text is None and not (root / "usr/lib/wsl/lib/libcuda.so.1").exists():
        fix = "install NVIDIA's driver, and see that nvidia-smi lists the GPU; a container needs NVIDIA's container toolkit"
        return Finding(what, "missing", "there", "blocking", fix)
    version = re.search(r"\b\d{3}\.[\d.]+", text or "")
    found, wanted = (
        f"version {version[0]}" if version else "there",
        f"there, for a GPU of SM {_sm(LEAST_COMPUTE_CAPABILITY)} or later",
    )
    gpu = _query_gpu(root)
    if gpu is None:
        return Finding(what, found, wanted)
    name, capability = gpu
    found += f", {name} (SM {_sm(capability)})"
    if capability < LEAST_COMPUTE_CAPABILITY:
        return Finding(what, found, wanted, "warning", "newer releases of TensorRT do not support this GPU")
    return Finding(what, found, wanted)


def _query_gpu(root: Path) -> tuple[str, tuple[int, int]] | None:
    """The name and the compute capability of the first GPU, by ``nvidia-smi``; None where it does not tell."""
    folders = [str(root / each) for each in ("usr/bin", "usr/local/bin", "usr/lib/wsl/lib")]
    program = shutil.which("nvidia-smi", path=os.pathsep.join(folders))
    answer = program and _run([program, "--query-gpu=name,compute_cap", "--format=csv,noheader"])
    found = re.match(r"(.+), (\d+)\.(\d+)\s*$", answer.splitlines()[0]) if answer else None
    return (found[1], (int(found[2]), int(found[3]))) if found else None


def note_power(root: Path) -> Finding:
    """The power mode of a Jetson."""
    mode, modes = read_power_mode(root), read_power_modes(root)
    best = next((number for number, name in modes.items() if name.startswith("MAXN")), None)
    fix = ""
    if best is not None and mode != modes[best]:
        fix = f"{modes[best]} has the highest clocks, where the power supply and the cooling allow it: sudo nvpmodel -m {best}"
    return Finding("power mode", mode or "unknown", fix=fix)


def note_clocks(root: Path) -> Finding:
    """Whether ``jetson_clocks`` holds the clocks of a Jetson."""
    folders = (root / "sys/devices/system/cpu").glob("cpu[0-9]*")
    locked = clocks_locked(root, [int(folder.name[3:]) for folder in folders])
    found = {None: "unknown", False: "changing with the load", True: "held at their highest"}[locked]
    fix = "latencies vary less with sudo jetson_clocks, until the next start" if locked is False else ""
    return Finding("clocks", found, fix=fix)


def _find_nvcc(root: Path) -> Path | None:
    path = os.environ.get("PATH", "") if root == THIS else str(root / "usr/bin")
    found = shutil.which("nvcc", path=path)
    if found is not None:
        # What is on PATH may be a link into the toolkit, whose other folders are beside it.
        return Path(found).resolve()
    known = [root / "usr/local/cuda/bin/nvcc", *sorted((root / "usr/local").glob("cuda-*/bin/nvcc"), reverse=True)]
    return next((each for each in known if os.access(each, os.X_OK)), None)


def _import_error(program: Path, package: str) -> str | None:
    """Why a Python cannot import a package; None where it can, or where it cannot be run, as one of another processor."""
    try:
        answer = subprocess.run(
            [program, "-I", "-c", f"import {package}"],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
    except OSError:
        return None
    except subprocess.TimeoutExpired:
        return "it takes over two minutes"
    lines = answer.stderr.strip().splitlines()
    return None if answer.returncode == 0 else (lines[-1] if lines else f"exit code {answer.returncode}")


def _run(command: list[str]) -> str | None:
    try:
        answer = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=20, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return answer.stdout.strip() if answer.returncode == 0 else None


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(each) for each in re.findall(r"\d+", version))


def _sm(capability: tuple[int, int]) -> str:
    return ".".join(map(str, capability))
