"""Sharded runs: the members of a group hold one model together, as ZeRO-3 does, with nobody in charge."""
