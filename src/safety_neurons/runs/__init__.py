"""A run: the stages in order, over a folder that holds all they make."""
