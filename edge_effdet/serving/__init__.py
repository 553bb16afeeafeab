"""The HTTP service: an engine behind the Open Inference Protocol, a plain call for one picture, metrics, and a page for people."""
