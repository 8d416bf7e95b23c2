"""Speed on this machine: what tools/benchmark.py measures."""
