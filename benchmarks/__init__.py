"""Benchmarks: what of ours takes how long beside a named peer. `python -m benchmarks [NAME ...]` or `make bench`."""
