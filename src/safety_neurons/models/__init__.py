"""Models: loading, talking, and where their MLP neurons are.

Nothing is imported here, so that the command line starts without waiting for torch.
"""
