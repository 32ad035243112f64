"""nomadfn measured beside `ProcessPoolExecutor`, in turn in one run: `python -m benchmarks.run`."""
