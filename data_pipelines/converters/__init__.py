"""Corpora as people have them, as shards."""
