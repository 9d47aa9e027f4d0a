"""Episodes on disk: the manifest, the index, shards, videos, and who writes and checks them."""
