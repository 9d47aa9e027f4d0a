"""Bytes in a folder or a bucket, and their cache on this machine."""
