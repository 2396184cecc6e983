"""Attacks on the tool itself: what each does, and what is counted as harm."""
