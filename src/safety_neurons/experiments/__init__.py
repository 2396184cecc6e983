"""Experiments on a run: how calibration changes a model, how scores compare, and which settings tune best."""
