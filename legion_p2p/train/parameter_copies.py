"""How many times a peer holds the parameters of its run, in fp32."""

COPIES_HELD = 7
"""Parameters, gradients, two moments; the common copy; what was handed in, what compression left out, a round in flight: 4
bytes an element each. Measured with the preset l: docs/records/memory.md."""
COPIES_HELPED = 5
"""What a helper holds of all elements: reference, log of updates, residual, a round in flight. Measured with the preset l."""
COPIES_BUILT = 2  # the model as it is made, and the run's copy of it; in a sharded run most of both goes to other members
