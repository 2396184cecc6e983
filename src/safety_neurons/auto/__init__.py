"""Tuning's settings chosen on validation prompts: the trade between attacks that fail and manners that stay."""
