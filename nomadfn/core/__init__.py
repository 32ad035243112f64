"""The pure core: queue, pool and policies. No clock, no randomness, no I/O; `now` is an argument."""
