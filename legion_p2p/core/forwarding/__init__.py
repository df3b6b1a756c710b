"""How an update reaches all members of a region: passed on along a tree that nobody arranges."""
