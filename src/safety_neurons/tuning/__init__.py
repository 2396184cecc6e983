"""SafeTuning: training only the safety neurons."""
