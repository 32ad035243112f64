"""nomadfn measured beside what users would pick instead, in turn in one run: `python -m benchmarks.run`."""
