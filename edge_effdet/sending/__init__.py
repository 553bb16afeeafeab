"""Where detections leave the machine over a wire: MQTT and webhooks, with a spool on the disk that nothing is lost from, and ROS 2.

``options`` needs Python's standard library alone, since what installs a bundle reads the service's options with it.
"""
