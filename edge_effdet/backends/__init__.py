"""Engines: compiled and run. ``base`` holds the protocol and the table of names."""

import os

# onnxruntime 1.32 writes an id and a database into the home folder when it is imported, and sends events to Microsoft. Its Privacy.md names this variable,
# which has to be set before. A value that the user has set stays.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
