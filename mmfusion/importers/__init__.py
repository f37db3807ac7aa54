"""Other projects' weights as our folders, read without running code from them."""
