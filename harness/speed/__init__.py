"""Speed and memory on random weights: what is measured, how it is run, where it is kept."""
