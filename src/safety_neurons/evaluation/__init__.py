"""Evaluation: attacks by defenses by judges, utility, and paired comparison."""
