"""The official CausalFusion code and ours, side by side; see `__main__`."""
