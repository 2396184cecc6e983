"""Audits: has a fine-tuned model lost the safety of its base."""
