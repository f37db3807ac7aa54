"""What is measured on a GPU: each script checks, times, prints a table and fails loudly."""
