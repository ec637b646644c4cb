"""Tables as data, the views of that data, and figures. Torch-free, and free of any runner."""
