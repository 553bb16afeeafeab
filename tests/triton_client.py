"""NVIDIA's client of Triton, run by the Python of ``triton_install.sh``, which has what it needs and nothing of edge_effdet.

triton_client.py infer FOLDER     send the requests that ``request.json`` there describes; write ``outputs.npz`` and ``errors.json``
triton_client.py check FILE…      parse files in the text format of protobuf as ModelConfig, and print each as JSON
triton_client.py load FOLDER      send the pictures there for some time, and print how many were answered
"""

from __future__ import annotations

import importlib
import json
import queue
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np


def make_client(protocol: str, address: str) -> tuple[Any, Any]:
    """The client's module and a client, which belongs to the thread that makes it."""
    module = importlib.import_module(f"tritonclient.{protocol}")
    return module, module.InferenceServerClient(address)


def ask(module: Any, client: Any, model: str, pictures: list[bytes], parameters: dict[str, Any] | None) -> Any:
    tensor = module.InferInput("IMAGE", [len(pictures), 1], "BYTES")
    tensor.set_data_from_numpy(np.array(pictures, dtype=np.object_).reshape(-1, 1))
    return client.infer(model, [tensor], parameters=parameters)


def infer(folder: Path) -> None:
    told = json.loads((folder / "request.json").read_text())
    waiting: queue.SimpleQueue[tuple[int, list[bytes]]] = queue.SimpleQueue()
    start = 0
    for number, size in enumerate(told["sizes"]):
        waiting.put((number, [(folder / str(each)).read_bytes() for each in range(start, start + size)]))
        start += size
    arrays: dict[str, np.ndarray] = {}
    errors = [""] * len(told["sizes"])
    ready = threading.Barrier(told["clients"])

    def work() -> None:
        module, client = make_client(told["protocol"], told["address"])
        ready.wait()
        while True:
            try:
                number, pictures = waiting.get_nowait()
            except queue.Empty:
                return
            try:
                result = ask(module, client, told["model"], pictures, told["parameters"])
                names = (
                    [each["name"] for each in result.get_response()["outputs"]]
                    if told["protocol"] == "http"
                    else [each.name for each in result.get_response().outputs]
                )
                arrays.update({f"{number}.{name}": result.as_numpy(name) for name in names})
            except Exception as error:
                # An answer of the server, or of the client, which the test looks at.
                errors[number] = f"{type(error).__name__}: {error}"

    threads = [threading.Thread(target=work) for _ in range(told["clients"])]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    np.savez(folder / "outputs.npz", **arrays)
    (folder / "errors.json").write_text(json.dumps(errors))


def check(files: list[str]) -> None:
    from google.protobuf import json_format, text_format
    from tritonclient.grpc import model_config_pb2

    found = [text_format.Parse(Path(file).read_text(), model_config_pb2.ModelConfig()) for file in files]
    print(json.dumps([json_format.MessageToDict(each, preserving_proto_field_name=True) for each in found]))


if __name__ == "__main__":
    if sys.argv[1] == "check":
        check(sys.argv[2:])
    else:
        infer(Path(sys.argv[2]))
