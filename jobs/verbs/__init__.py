"""The verbs of the command line by what they are about: what may be typed, and whom it is handed to.

Each hands over to its own module, which is imported only then.
"""
