"""The page that a peer, a bootstrap node or a demo shows in a browser on the same machine, and the file that a report is."""
