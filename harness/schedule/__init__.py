"""Many cells: which are still to be run, by whom, one after the other or on a cluster."""
