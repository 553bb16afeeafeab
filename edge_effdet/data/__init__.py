"""Data sets: a reader for each format, the data check, the transforms of training, and synthetic scenes."""
