"""CLIP models: which weights, under which activation, and pictures and texts as embeddings."""
