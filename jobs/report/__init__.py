"""`longtake report`."""
