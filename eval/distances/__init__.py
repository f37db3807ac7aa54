"""Distances between two sets of pictures' features: arithmetic alone, no pictures, no models."""
