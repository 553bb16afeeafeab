"""The files of a bundle with which it runs in a container: a Dockerfile for its target, what the container starts, and a file for Docker
Compose.

An engine is built on the GPU that runs it, which is not there while an image is built. So the image holds the bundle, and the container
installs it into a volume when it starts: the same installation as without a container, with all of its checks. The next start finds it
done.
"""

from __future__ import annotations

import re
from pathlib import Path

from edge_effdet.device.manifest import Manifest
from edge_effdet.device.targets import ON_CPU, get_target

FOLDER = "containers"
"""The folder in the bundle."""

_FILES = Path(__file__).parent / "files" / FOLDER

_BASES = {
    "l4t": "nvcr.io/nvidia/l4t-jetpack:r36.4.0",
    "thor": "nvcr.io/nvidia/tensorrt:25.08-py3",
    "cuda": "nvcr.io/nvidia/cuda:13.0.1-devel-ubuntu24.04",
    "cpu": "python:3.11-slim-bookworm",
}
"""What an image is made from: for JetPack 6; for JetPack 7.0 on Thor (CUDA 13.0, TensorRT 10.13); for a GPU of a server; without a GPU.
Those of NVIDIA are named from its catalogue and were never fetched."""

_GPU = """\
    # NVIDIA's Container Toolkit gives the GPU and its driver to the container.
    runtime: nvidia
"""

_GPU_VARIABLES = """\
      NVIDIA_VISIBLE_DEVICES: all
      NVIDIA_DRIVER_CAPABILITIES: all
"""

_JETSON_MOUNTS = """\
      # What tells the release of JetPack.
      - type: bind
        source: /etc/nv_tegra_release
        target: /etc/nv_tegra_release
        read_only: true
        bind:
          create_host_path: false
      # A CSI camera, by nvarguscamerasrc, needs the socket of its daemon:
      # - /tmp/argus_socket:/tmp/argus_socket
"""


def write_containers(folder: Path, manifest: Manifest) -> None:
    """Write the files for containers into the folder ``containers`` of a bundle: ``Dockerfile.l4t``, ``.cuda`` or ``.cpu``, whichever suits
    its target and backend, ``entrypoint.sh`` and ``compose.yaml``.

    Args:
        folder: the bundle, before its hashes are taken.
        manifest: what it is.
    """
    target = get_target(manifest.target)
    on_gpu = manifest.backend not in ON_CPU
    kind = "cpu" if not on_gpu else "l4t" if target.is_jetson else "cuda"
    dockerfile = f"Dockerfile.{kind}"
    values = {
        "NAME": manifest.name,
        "IMAGE": f"{image_name(manifest.name)}:{manifest.release}",
        "BASE": _BASES["thor" if kind == "l4t" and manifest.target == "jetson-thor" else kind],
        "DOCKERFILE": dockerfile,
        "GPU": _GPU if on_gpu else "",
        "MOUNTS": _JETSON_MOUNTS if kind == "l4t" else "",
    }
    (folder / FOLDER).mkdir()
    for name in (dockerfile, "entrypoint.sh", "compose.yaml"):
        text = (_FILES / name).read_text(encoding="ascii")
        text = re.sub(r"@([A-Z]+)@", lambda found: values[found[1]], text)
        if name == "compose.yaml" and on_gpu:
            text = text.replace("    environment:\n", f"    environment:\n{_GPU_VARIABLES}")
        (folder / FOLDER / name).write_text(text, encoding="ascii")


def image_name(name: str) -> str:
    """The name of the image of a bundle: lower-case letters and digits with single dashes between them, as Docker wants it."""
    return "-".join(["edge-effdet", *re.findall("[a-z0-9]+", name.lower())])
