"""Precision: which layers run in what, calibrated on which images, and the proof of it."""
