"""Compile the stand-in for NVIDIA's driver, so that tests/gpu runs with the real PyCUDA and cuda-python where no GPU is.

    python tests/gpu/simulated_driver/build.py --cuda /usr/local/cuda --output /tmp/simulated
    CUDA_ROOT=/usr/local/cuda LIBRARY_PATH=/tmp/simulated pip install pycuda
    LD_LIBRARY_PATH=/tmp/simulated python -m pytest tests/gpu

It proves that the calls are made as those libraries take them, in a sound order and on sound threads. It proves nothing of a
GPU. PyCUDA wants cuRAND's header too; without it, build PyCUDA with ``CUDA_ENABLE_CURAND = False`` in its siteconf.py.
"""

from __future__ import annotations

import argparse
import re
import subprocess
from pathlib import Path

SOURCE = Path(__file__).with_name("driver.c")
VERSIONS = ("", "_v2", "_v3", "_v4", "_ptsz", "_v2_ptsz", "_ptds", "_v2_ptds")
NOT_SUPPORTED = 801

FIND = """
typedef struct { const char *name; void *function; int simulated; } Entry;
static const Entry entries[] = {
%s
  {0, 0, 0}};

static void *find(const char *name, const char *version, int only_simulated) {
  char wanted[256];
  snprintf(wanted, sizeof wanted, "%%s%%s", name, version);
  for (const Entry *entry = entries; entry->name; entry++)
    if (!strcmp(entry->name, wanted) && (entry->simulated || !only_simulated)) return entry->function;
  return 0;
}

int cuGetProcAddress_v2(const char *name, void **function, int version, unsigned long long flags, int *status) {
  *function = find(name, "_v2", 1);
  if (!*function && !strcmp(name, "cuGraphInstantiate")) *function = cuGraphInstantiateWithFlags;
  if (!*function) *function = find(name, "", 0);
  if (status) *status = *function ? 0 : 1;
  return *function ? 0 : NOT_FOUND;
}
int cuGetProcAddress(const char *name, void **function, int version, unsigned long long flags) {
  return cuGetProcAddress_v2(name, function, version, flags, 0);
}
"""


def write_source(header: str, simulated: str) -> str:
    """The driver's C with a function for each other name of ``cuda.h``, and the look-up that cuda-python starts from."""
    declared = set(re.findall(r"CUDAAPI\s+(cu\w+)\s*\(", header)) | set(re.findall(r"#define\s+(cu[A-Z]\w+)\s", header))
    own = set(re.findall(r"^int (cu\w+)\(", simulated, re.MULTILINE))
    looked_up = {"cuGetProcAddress", "cuGetProcAddress_v2"}
    others = sorted({name + version for name in declared for version in VERSIONS} - own - looked_up)
    stubs = "".join(f"int {name}(void) {{ return {NOT_SUPPORTED}; }}\n" for name in others)
    looked_up_first = "".join(f"int {name}();\n" for name in sorted(looked_up))
    rows = [
        f'  {{"{name}", (void *){name}, {int(name in own | looked_up)}}},'
        for name in sorted(own | looked_up | set(others))
    ]
    return simulated + stubs + looked_up_first + FIND % "\n".join(rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cuda", type=Path, default=Path("/usr/local/cuda"), help="the toolkit, for include/cuda.h")
    parser.add_argument("--output", type=Path, required=True, help="folder for libcuda.so.1")
    arguments = parser.parse_args()
    arguments.output.mkdir(parents=True, exist_ok=True)
    header = (arguments.cuda / "include" / "cuda.h").read_text(encoding="utf-8")
    generated = arguments.output / "driver.c"
    generated.write_text(write_source(header, SOURCE.read_text(encoding="utf-8")), encoding="utf-8")
    library = arguments.output / "libcuda.so.1"
    flags = ["-shared", "-fPIC", "-O1", "-w", "-Wl,-soname,libcuda.so.1"]
    subprocess.run(["gcc", *flags, "-o", str(library), str(generated)], check=True)
    link = arguments.output / "libcuda.so"
    link.unlink(missing_ok=True)
    link.symlink_to(library.name)


if __name__ == "__main__":
    main()
