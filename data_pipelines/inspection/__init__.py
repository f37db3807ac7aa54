"""What shards hold, seen by a person; and whether all of it is whole."""
