"""What installs a bundle on a device, updates it, runs it and takes it back.

All of it is in the bundle's wheel, and the first step runs before anything is installed. So no module here needs more than Python's standard
library, 3.10 to 3.13, to be imported; what needs NumPy or a backend (``engine``, ``service.loop``) runs in the environment that was installed.
"""
