"""`longtake profile`."""
