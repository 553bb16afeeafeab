"""What makes a bundle on the host: ``stage`` gathers it, the other modules each make one part of it.

The bundle is checked, installed and run by ``edge_effdet.device``, which the wheel in the bundle has.
"""
