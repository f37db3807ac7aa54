"""Raw data to tar shards, shards to documents, documents to packed rows."""
