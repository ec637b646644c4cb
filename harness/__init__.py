"""Reported and measured numbers: cells, records, how they are run, and the tables made of them."""
