"""What a device installs: from pictures to boxes with an engine. It imports no torch and no onnx."""
