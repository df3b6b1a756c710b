"""Files that a user names: how their names are read, how they are opened, what is in them, and how they are replaced."""
