"""The service on a device: what runs the engine of the installed version for ever, what starts it, and what tells how it is.

``loop`` and ``watched`` need NumPy and a backend and run in the environment of the installed version. All else here needs Python's standard
library alone, since what installs a bundle uses it.
"""
