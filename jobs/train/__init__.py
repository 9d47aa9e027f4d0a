"""`longtake train`."""
