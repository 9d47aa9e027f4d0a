"""`longtake datasets`, and what looks over one: `inspect` and `verify`."""
