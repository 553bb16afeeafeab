"""How good detections are: COCO metrics, confusion, intervals, and pictures of what went wrong."""
