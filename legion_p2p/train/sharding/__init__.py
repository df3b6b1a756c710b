"""Training in a sharded run: `run.shard(model)`."""
