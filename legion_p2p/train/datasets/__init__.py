"""Text from many sources as prepared data: token ids in shards, named by content."""
