"""`longtake encode`."""
