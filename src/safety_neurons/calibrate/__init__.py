"""Calibrating safety neurons: the causal test."""

from safety_neurons.calibrate.calibration import Toward, calibrate

__all__ = ["Toward", "calibrate"]
