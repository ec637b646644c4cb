"""What is run, as data: a cell, its methods and settings."""
