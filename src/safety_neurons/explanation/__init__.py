"""Explaining safety neurons in words."""
