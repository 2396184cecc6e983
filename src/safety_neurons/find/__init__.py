"""Finding safety neurons."""
