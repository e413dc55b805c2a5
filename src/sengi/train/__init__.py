"""One run: the step loop, optimizer, sharding, checkpoints and dynamics."""
