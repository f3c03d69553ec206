"""A sharded parameter server: the flat vector's layout, the shards that own it, and what they save."""
