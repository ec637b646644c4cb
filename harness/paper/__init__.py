"""The paper against itself: its derived figures recomputed from its own cells. Torch-free."""
