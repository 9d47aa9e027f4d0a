"""`longtake ingest`."""
