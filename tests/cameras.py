"""A camera in the network that can be switched off and on, and that may fall silent: a stream of JPEG pictures over HTTP."""

from __future__ import annotations

import io
import os
import socket
import threading
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image


class NetworkCamera:
    """Sends pictures ten times a second to whoever asks, while it is on. Its address stays the same."""

    def __init__(self, pictures: Sequence[np.ndarray]) -> None:
        self._jpegs = [_jpeg(picture) for picture in pictures]
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._port = self._listener.getsockname()[1]
        self._listener.close()
        self.address = f"http://user:secret@127.0.0.1:{self._port}/stream"
        self._off = threading.Event()
        self.silent = threading.Event()
        self._threads: list[threading.Thread] = []

    def switch_on(self) -> None:
        self._off = threading.Event()
        self._listener = socket.create_server(("127.0.0.1", self._port))
        self._start(self._listen, self._listener, self._off)

    def switch_off(self) -> None:
        self._off.set()
        # A blocked accept does not notice that its socket is closed.
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for thread in self._threads:
            thread.join()
        self._threads.clear()

    def _start(self, work, *arguments) -> None:
        thread = threading.Thread(target=work, args=arguments)
        self._threads.append(thread)
        thread.start()

    def _listen(self, listener: socket.socket, off: threading.Event) -> None:
        while not off.is_set():
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            self._start(self._send, connection, off)

    def _send(self, connection: socket.socket, off: threading.Event) -> None:
        with connection:
            try:
                connection.recv(4096)
                connection.sendall(
                    b"HTTP/1.1 200 OK\r\nContent-Type: multipart/x-mixed-replace; boundary=frame\r\n\r\n"
                )
                number = 0
                while not off.wait(0.1):
                    if self.silent.is_set():
                        continue
                    jpeg = self._jpegs[number % len(self._jpegs)]
                    head = f"--frame\r\nContent-Type: image/jpeg\r\nContent-Length: {len(jpeg)}\r\n\r\n"
                    connection.sendall(head.encode() + jpeg + b"\r\n")
                    number += 1
            except OSError:
                return


class PipeCamera:
    """A named pipe that a program writes a video to, and that may stop writing without closing it: a read of it then never ends."""

    def __init__(self, path: Path, video: bytes) -> None:
        os.mkfifo(path)
        self.path, self._video = path, video
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._write)
        self._thread.start()

    def _write(self) -> None:
        with self.path.open("wb") as stream:
            try:
                stream.write(self._video)
                stream.flush()
            except OSError:
                return
            self._over.wait()

    def close(self) -> None:
        self._over.set()
        self._thread.join()


def _jpeg(picture: np.ndarray) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(picture).save(stream, "JPEG", quality=95)
    return stream.getvalue()
