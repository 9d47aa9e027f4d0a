"""The tasks: one file each, whose docstring is its card. A file that is put here is a task from then on."""
