"""`longtake diagnose`."""
