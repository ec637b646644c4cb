"""Tests of `results/`."""
