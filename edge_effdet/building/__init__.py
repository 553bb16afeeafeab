"""The chain from a checkpoint to a proven engine: race, gate and report."""
