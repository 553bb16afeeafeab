"""One reader a format, one Dataset type, the training transforms and the synthetic scenes."""
