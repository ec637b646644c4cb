"""The numbers behind the tables: measured beside reported, with their statistics. Torch-free."""
