"""Captions against references: cleaned, tokenised, scored, picture by picture."""
