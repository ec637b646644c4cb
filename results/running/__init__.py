"""Runs cells: inputs, fine-tuning, scoring, and which cells are still to be run."""
