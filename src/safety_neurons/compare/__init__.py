"""All scores side by side, on one model: what each finds, what that does, how stable it is, what it costs."""
