"""The metrics: one file each, whose docstring is its card. A file that is put here is a metric from then on."""
