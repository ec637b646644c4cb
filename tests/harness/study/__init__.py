"""Tests of the fair trial."""
