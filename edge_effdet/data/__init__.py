"""Data sets: a reader for each format, the data check, and the transforms of training."""
