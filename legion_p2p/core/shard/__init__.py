"""The life of one shard at one peer, as machines without IO.

| machine | decides |
|---|---|
| push.py, `PushQueue` | when this peer's own change is packed, sent, sent again, redirected, settled |
| follower.py, `Follower` | whose versions are taken over, and who is asked for what is missing here |
| owner.py, `Owner` | when this peer takes a shard over, when a round closes, who is sent what |
| handover.py, `Handover` | what an owner that stops being one gives to whom, and when that is done |
| life.py, `ShardLife` | which of them acts next |

Each takes events and the time (`handle`), says what should happen (`poll`), and when it wants to be asked again
(`next_deadline`). Tensors are opaque here: the machines pass them on and never look inside.
"""
