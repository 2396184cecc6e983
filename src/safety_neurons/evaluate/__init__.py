"""Evaluation: answers, verdicts, rates and their intervals."""
