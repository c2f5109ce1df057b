"""Training: objective, optimizer, the pmap step, the loop, checkpoints, trackers."""
