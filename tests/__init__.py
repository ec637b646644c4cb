"""The tests of the project, one folder for each part."""
