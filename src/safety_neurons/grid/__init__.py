"""Evaluating models and runs: the grid of attacks, defences and judges, its results, and two of them compared."""
