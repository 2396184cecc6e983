"""What a defense costs besides verdicts: time, ordinary answers, capabilities, and preferred answers."""
