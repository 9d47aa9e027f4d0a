"""Append-only tables of Parquet parts, their columns, and the rows of runs and scores."""
