"""Calibration as an experiment: what a push does at each dose, the smallest that works, and where else it works."""
