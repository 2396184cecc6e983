"""Calibrating safety neurons: the causal test."""
