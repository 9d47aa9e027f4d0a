"""`longtake bench`."""
