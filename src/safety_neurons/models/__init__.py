"""Models: loading, generation, likelihood, and the location of their MLP neurons."""
