"""`longtake reproduce`."""
