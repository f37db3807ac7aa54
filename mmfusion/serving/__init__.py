"""A model that many use at once: one engine, a server and a page to draw on."""
