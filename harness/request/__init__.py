"""What a user asks for: the options of the command line, read and checked."""
