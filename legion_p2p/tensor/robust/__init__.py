"""Aggregation rules that hold where some of those who push are hostile. `rules.aggregate` is the way in."""
