"""Ratios measured on the machine at hand, each beside its target: `python -m benchmarks [NAME ...] [--json]`."""
