"""Files near and far: found, fetched, indexed, opened and read at any place."""
