"""TensorRT and TensorRT-RTX: ``builder`` and ``rtx`` are the two backends, ``runner`` runs what they build, and ``cuda`` has the GPU."""
