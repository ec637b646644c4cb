"""Tests of `mixlora/`."""
