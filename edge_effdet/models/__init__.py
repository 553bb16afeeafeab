"""Architectures, weights and checkpoints. Everything here needs torch, timm and effdet; the device side imports none of it."""
