"""Training libraries in a run: each module needs the library of its name, and nothing else of the package needs it."""
