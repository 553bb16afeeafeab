"""EfficientDet from training to a Jetson."""
