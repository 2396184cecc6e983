"""Where each architecture keeps its MLP neurons."""
