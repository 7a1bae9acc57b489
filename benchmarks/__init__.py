"""Measures int8calib beside other engines; `python -m benchmarks --help` lists the parts."""
