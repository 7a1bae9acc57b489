"""Calibration of any network that an executor runs: statistics, thresholds, scales, tables."""
