"""Every kind of file of a store, mutated in twenty ways, and read as the product reads it: `make corrupt`.

`base` makes a small store without Ray; `kinds` says which files there are and who reads them; `table` mutates them one
at a time and says what came of it.
"""
