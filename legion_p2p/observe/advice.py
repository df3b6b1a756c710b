"""What a person can do about an error event, in one sentence each; docs of the events themselves: observe/catalogue.py."""

NOTHING_TO_DO = "Nothing needs to be done: this peer goes on by itself."

ADVICE = {
    "access.unreadable": "Mend or remove the file that the text names; what was read before holds until then.",
    "checkpoint.failed": "Look at the disk that the text names: free space, or give the store another folder with --store.",
    "checkpoint.journal_damaged": "Nothing needs to be done: what is missing is fetched from other members.",
    "checkpoint.moments_left_out": "Give the store more room, or another folder with --store; a resume then begins cold.",
    "checkpoint.moments_lost": "Nothing needs to be done: the loss may rise for some steps; look at the disk of the store.",
    "checkpoint.unusable": "Nothing needs to be done while an older checkpoint or another member is there; look at the disk.",
    "control.volume_lost": "Look at the file that the text names; it may be deleted, and the month is then counted from zero.",
    "evidence.not_kept": "Look at the file that the text names; it may be deleted.",
    "join.no_store": "Free disk space, or give the store another folder with --store.",
    "member.dead": "Nothing needs to be done: its shards have gone to other members.",
    "member.diverged": "Tell its user: a lower learning rate, or a restart of that peer, helps.",
    "member.same_key": "Give each peer a key file of its own with --identity.",
    "metrics.not_served": "Choose another port with --metrics, or end what uses this one.",
    "model.not_saved": "Look at the folder of --out; the text says where the model is now.",
    "network.not_remembered": "Look at the file that the text names; it may be deleted.",
    "network.other_version": "Install the same version of legion_p2p at both peers.",
    "network.scarce": "Start the peer with a higher limit of open files: ulimit -n 4096.",
    "owner.excluded": "Nothing needs to be done: it owns no shards any more, and its pushes count nothing.",
    "peer.failed": "The text says what failed; legion-peer --help lists what can be changed.",
    "privacy.not_read": "Mend the file that the text names, or stop the peer if the budget must not be exceeded.",
    "privacy.not_written": "Free disk space where the text says; a restart would not know what was spent since.",
    "provider.dropped": NOTHING_TO_DO,
    "push.refused": "If it goes on, compare the versions of legion_p2p at both peers.",
    "reports.ended": "Look at the tracker that the text names; metrics.jsonl has all of it.",
    "request.refused": NOTHING_TO_DO,
    "shard.fetch_refused": NOTHING_TO_DO,
    "shard.sync_refused": NOTHING_TO_DO,
    "store.damaged": "Check the disk: legion-ctl checkpoint verify reads all blocks of a checkpoint.",
    "sync.failed": NOTHING_TO_DO,
    "training.diverged": "Restart this peer, with a lower learning rate if it happens again.",
}
"""By the event's name."""


def advice_on(event: str) -> str:
    """What to do about an error event; empty for one that is not known."""
    return ADVICE.get(event, "")
