"""The dial: quality against time, measured, chosen from and shown."""
