"""Engines: compiled and run. ``base`` holds the protocol and the table of names."""
