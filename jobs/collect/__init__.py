"""`longtake collect`."""
