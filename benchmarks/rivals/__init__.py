"""The parts of benchmarks/calibration_rivals.py: each rival in a file of its own, after its paper."""
