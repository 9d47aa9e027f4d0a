"""`longtake sweep`."""
