"""What ``train`` is made of: options, augmented batches, the optimizer's loop, resume, reports."""
