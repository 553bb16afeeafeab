"""ONNX rewrites: one rule a file, each with its algebra in the docstring. ``optimize`` applies them in order."""
