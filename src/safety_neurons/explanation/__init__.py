"""Explanations of safety neurons in words."""
