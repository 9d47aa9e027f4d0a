"""`longtake runs`."""
