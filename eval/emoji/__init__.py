"""The emoji suite: pictures by name and style, restyles, analogies and captions of kept cells."""
