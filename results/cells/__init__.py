"""What is run, as data: a cell, its methods and settings, and what the user may ask for."""
