"""A fair trial: every method tuned alike, on rows that are not scored, with a verdict."""
