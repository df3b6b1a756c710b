"""Aggregation rules that withstand some hostile members. `rules.aggregate` is the way in."""
