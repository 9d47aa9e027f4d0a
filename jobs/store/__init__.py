"""Verbs that keep a store: `tag`, `note`, `rename`, `rm`, `gc`, `du`, `compact`."""
