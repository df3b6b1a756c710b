"""Reports of a peer to experiment trackers: a module for each, and the thread that feeds them."""
