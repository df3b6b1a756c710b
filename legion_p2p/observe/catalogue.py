"""Every event that a peer emits, with its fields: the source of the reference page, and what a test compares the code with.

An event is one line of JSON in metrics.jsonl in the folder of `--out`, and an `Event` to a sink of `Events`. Besides its own
fields each has `event` (its name) and `at` (seconds since the epoch). An error also has `"error": true` and `text`, which says in
words what went wrong.
"""

import msgspec

FIELDS = {
    "address": "where something listens",
    "after": "what it is now",
    "averaged_fraction": "share of the expected contributions, by weight, that the round averaged: 0 to 1",
    "base": "version of the stored base that the shard was built on",
    "before": "what it was until now",
    "blocked_fraction": "share of training time that the swarm took: 0 to 1",
    "bytes_across": "bytes of requests and replies exchanged with other regions",
    "bytes_in_region": "bytes of requests and replies exchanged within the region",
    "cid": "content id of a checkpoint's manifest, or of one of its nodes",
    "connected": "ids of the peers that this one was connected to at the end",
    "codec": "codec of the bytes that were exchanged",
    "command": "what another peer runs to join",
    "download_bps": "limit on receiving, in bits per second; null: none",
    "digest": "digest of the parameters, in hexadecimal",
    "distance": "distance between two copies of a shard, relative to what training moves it by",
    "failed": "members that are not in the average, and why: a list of `peer_id` and `reason`",
    "incarnation": "number with which this peer contradicts reports that it is gone",
    "key": "what was to be advertised in the DHT",
    "kind": "class of the exception",
    "local_steps": "optimizer steps between two pushes of a shard",
    "loss": "training loss of the last step, in nats per token",
    "manifest": "content id of the checkpoint's manifest",
    "max_cpu": "share of the machine's processors that the process may take: 0 to 1; null: no limit",
    "memory_problem": "why the memory did not suffice, and what takes less; empty: it did",
    "mfu": "model FLOPs utilisation, from 0 to 1; null where nobody knows what the device can do",
    "n_banned": "peers that the lists ban",
    "n_believed": "shards for which members confirmed a stored state",
    "n_bytes": "bytes exchanged, or to be fetched",
    "n_checkpoints": "checkpoints that were looked at",
    "n_chosen": "shards that will be built on a checkpoint",
    "n_donors": "members that shards were fetched from",
    "n_expected": "members that the round waited for",
    "n_from_checkpoints": "shards that were built on a checkpoint",
    "n_included": "pushes in the average",
    "n_members": "members of the run, this peer included",
    "n_shards": "number of shards",
    "n_revoked": "tokens that were revoked",
    "n_versions_gained": "versions by which the others were ahead, summed over shards",
    "name": "name of the run",
    "nat": "NAT between this peer and the Internet: none, cone, symmetric, or unknown",
    "left_bytes": "bytes still to be handed over",
    "owner": "peer id of the shard's owner",
    "peer": "peer id of the other peer",
    "push_codec": "codec of this peer's pushes from now on",
    "rate": "moving rate that was used: 0 to 1",
    "reach": "how others reach this peer: public, punchable, relayed, or unknown",
    "reason": "why, in words",
    "received_bytes": "bytes received over the network since the start",
    "region": "label of a region",
    "relay": "peer id of the member that did it on the owner's behalf",
    "remaining_s": "seconds that it may still take",
    "retry_s": "seconds until it may be asked again",
    "rounds": "rounds of all shards together",
    "run": "id of the run",
    "save_problem": "why the model is not where it was asked for, and where it is; empty: it is there, or was not asked for",
    "saved_to": "file of the model; empty: none was asked for, or it is elsewhere",
    "sent_bytes": "bytes sent over the network since the start",
    "shard": "index of the shard, from 0",
    "step": "optimizer steps of this peer; for a checkpoint, the run's",
    "step_s": "seconds per step, smoothed",
    "steps": "optimizer steps of this peer",
    "stored": "version of the shard in the checkpoint",
    "stretch": "factor on the local steps, at least 1",
    "text": "what happened, in words",
    "text_problem": "why the text could not be read any more; empty: it could",
    "tokens": "tokens trained by this peer, or contained in what is described",
    "tokens_per_s": "training speed, smoothed",
    "upload_bps": "limit on sending, in bits per second; null: none",
    "update_codec": "codec of this peer's updates from now on",
    "val_loss": "loss on held-out text, in nats per token; null where it was not measured",
    "version": "version of the shard",
    "wall_s": "seconds of wall time",
    "wish": "what training is to do: train, pause, finish, or leave",
    "whole": "true if the whole shard was sent because the two had nothing in common to send a difference to",
}
"""What each field means, whichever event carries it."""


class EventKind(msgspec.Struct, frozen=True):
    """What an event of this name says, and the fields that it carries besides `event`, `at`, and an error's `text`."""

    name: str
    meaning: str
    fields: tuple[str, ...] = ()
    is_error: bool = False
    """Whether it is sent by `Events.error`, at least sometimes."""


def _event(name: str, meaning: str, fields: str = "") -> EventKind:
    return EventKind(name, meaning, tuple(fields.split()))


def _error(name: str, meaning: str, fields: str = "") -> EventKind:
    return EventKind(name, meaning, tuple(fields.split()), is_error=True)


EVENTS = (
    # the run
    _event("run.created", "This peer created the run.", "run name"),
    _event("run.joined", "This peer joined the run, and holds every shard.", "run name n_donors n_shards n_from_checkpoints"),
    _event("run.resuming", "This peer goes on from a checkpoint, and looks for the others.", "run name manifest step version"),
    _event("run.resumed", "This peer has resumed the run.", "run name step"),
    _event("run.reunited", "Peers that resumed agreed on the newest versions.", "n_members n_versions_gained"),
    _event("run.rejoining", "This peer was away, and follows the others before it takes part again.", "run"),
    _event("run.rejoined", "This peer takes part again.", "run"),
    _event("run.join_with", "The command with which others join.", "command"),
    _event("run.nobody_answers", "No initial peer answered; this peer trains alone, and keeps trying.", "text"),
    _event("run.not_asked", "A contact did not tell of the run.", "peer reason"),
    _event("run.handing_over", "This peer leaves, and gives large shards away first.", "n_shards left_bytes remaining_s"),
    _event("run.finished", "Training has ended.", "reason step tokens val_loss digest sent_bytes received_bytes region "
           "bytes_in_region bytes_across rounds blocked_fraction"),
    _event("run.left", "This peer has left the run.", "run"),
    # training
    _event("step", "A step of training, not more often than the status is refreshed.",
           "step tokens loss tokens_per_s step_s mfu"),
    _event("eval", "The loss on held-out text was measured.", "step tokens val_loss"),
    _event("data.begins_anew", "The stored position in the text does not fit; reading starts from the beginning.", "reason"),
    _event("control.changed", "The user, or a condition of theirs, changed what training is to do.", "wish reason"),
    _event("control.closed", "Nobody can pause or limit this peer from outside, because there is no control key.", "text"),
    _error("control.volume_lost", "What was sent and received this month could not be read or written; see `text`."),
    _event("control.limits", "The user has set other limits.", "upload_bps download_bps max_cpu"),
    _event("data.other_text", "A member trains on another text than this peer.", "peer reason"),
    _error("network.scarce", "This process may open too few files, so connections are turned away; the text says what helps."),
    _event("network.changed", "This machine has other addresses; connections from those that are gone were closed.", "text"),
    _event("network.away", "No other machine can be reached; this peer keeps trying.", "text"),
    _event("network.forwarded", "The router forwards a port to this peer; whether others can dial it is found out.", "text"),
    _event("network.back", "Other machines can be reached again.", "text"),
    _event("network.resumed", "The machine slept, or the process was stopped; dead connections were closed.", "text"),
    _error("network.not_remembered", "The file of the peers that this one knows could not be read or written; see `text`."),
    _event("status.not_served", "The status is not served, so legion-ctl cannot look at this peer.", "text"),
    _event("data.left_out", "Files in the folder of the text are no text, and are left out.", "text"),
    _error("model.not_saved", "The model could not be written where it was asked for; the text says where it is."),
    _event("model.rescued", "The peer failed, and its own parameters are in a file.", "text"),
    # rounds and shards
    _event("round.closed", "A round of a shard closed, and this peer holds its result.",
           "shard version n_included n_expected digest averaged_fraction failed owner"),
    _event("link.adapted", "Codecs or local steps changed, because the connection carries more or less than before.",
           "push_codec update_codec stretch local_steps"),
    _event("push.failed", "A push did not arrive, and will be sent again.", "shard owner reason"),
    _error("push.refused", "An owner refused a push; its content is dropped.", "peer"),
    _event("push.non_finite", "A change holds NaN or infinity: the shard was taken back to the common model.", "shard"),
    _error("training.diverged", "Changes were not finite twice: training has diverged here, and what helps against it."),
    _event("update.undelivered", "A member did not take an update; it will fetch it.", "shard version peer"),
    _event("shard.owned", "This peer became the owner of a shard.", "shard version"),
    _event("shard.handed_over", "The next owner has everything that it needs of a shard.", "shard version owner"),
    _event("shard.handover_failed", "A shard could not be given to its next owner.", "shard owner reason"),
    _event("shard.handover_of_other_state", "A hand-over does not fit this peer's copy of the shard; not used.", "shard peer"),
    _event("shard.fetched", "A whole shard was fetched from a member.", "shard version peer"),
    _event("shard.fetch_failed", "A member did not send a shard to this newcomer; another is asked.", "shard peer reason"),
    _error("shard.fetch_refused", "A member sent a shard that cannot be one.", "peer"),
    _event("shard.sync_failed", "A member did not send what is missing of a shard; another one is asked.", "shard peer reason"),
    _error("shard.sync_refused", "A member sent something that does not fit a shard.", "peer"),
    _event("shard.built", "A shard was built on a checkpoint and the updates since.", "shard base stored version"),
    _event("shard.not_built", "A shard could not be built on a checkpoint, and is fetched whole.", "shard version reason"),
    _event("shard.merged", "What this peer trained alone will reach the others with its next push.", "shard tokens owner"),
    # members
    _event("member.changed", "A member came, became suspect or dead, or left.", "peer before after"),
    _error("member.diverged", "A member announces that its training has diverged, so that it pushes nothing.", "peer"),
    _error("member.same_key", "Another peer runs with this peer's key; the newer one ends."),
    _error("member.dead", "A member did not answer, and is considered dead.", "peer"),
    _event("update.too_long", "An update was not followed: it is far longer than those before it.", "shard version owner"),
    _error("owner.excluded", "An owner is proven to have said two things, or to have left out a push; it owns nothing.", "peer"),
    _error("evidence.not_kept", "The file of what is proven against owners cannot be read or written; see `text`."),
    _event("owner.stalled", "An owner has made nothing of a shard for long, while a push waits.", "shard version owner"),
    _event("member.refuted", "This peer was reported as gone, and contradicts.", "incarnation"),
    _event("announcement.refused", "An announcement is malformed, forged or not believed.", "peer reason"),
    _event("access.read", "The lists of banned peers and of revocations beside the key file were read.", "n_banned n_revoked"),
    _error("access.unreadable", "One of these lists cannot be read; what was read before holds on."),
    _error("request.refused", "A peer sent a request that cannot be answered.", "peer kind"),
    _event("advertise.failed", "An entry could not be advertised in the DHT; it is tried again.", "key reason"),
    _event("look.failed", "The DHT could not be searched for members; it is tried again.", "reason"),
    # regions
    _event("region.moved", "This peer moved to another region.", "before after"),
    _event("sync.done", "A shard was synced with another region.", "shard version region distance rate codec whole n_bytes"),
    _error("sync.failed", "A sync with another region failed; an error if what was sent cannot be right.",
           "shard region peer reason"),
    _event("sync.refused", "Another region refused to sync for now.", "shard region peer reason"),
    _event("sync.lost", "The answer to a sync was lost, and is asked for again.", "shard region"),
    _event("sync.apart", "Two regions drift apart.", "shard region distance"),
    _event("sync.slowed", "A sync moved this region less than it asked for, because training moved it less.",
           "shard region rate distance"),
    _event("sync.relayed", "A relay synced with another region on behalf of this owner.", "shard version relay n_bytes"),
    _event("sync.undelivered", "A relay could not bring an owner what a sync moved.", "shard owner reason"),
    # checkpoints
    _event("checkpoint.stored", "A checkpoint is on disk.", "step cid wall_s"),
    _error("checkpoint.failed", "Checkpoints cannot be stored for now; training goes on."),
    _event("checkpoint.resumed", "Checkpoints can be stored again."),
    _error("checkpoint.unusable", "A stored checkpoint cannot be read; an older one is tried."),
    _error("checkpoint.journal_damaged", "The journal of updates ends early for a shard."),
    _event("checkpoint.not_believed", "A checkpoint that was offered is not used.", "cid reason"),
    _event("join.weighed", "This peer compared the checkpoints that are offered, and chose what to build on.",
           "n_checkpoints n_believed n_chosen n_bytes"),
    _error("join.no_store", "Fetched blocks cannot be stored, so that shards are fetched whole."),
    _error("store.damaged", "A stored block was damaged, and was moved aside."),
    _event("donor.busy", "A peer that was asked for a shard or blocks is busy.", "peer retry_s"),
    _error("provider.dropped", "A provider of blocks sent other bytes, and is not asked again.", "peer"),
    # the process
    _event("reach.found", "How others reach this peer was found out, or has changed.", "reach nat reason"),
    _event("status.served", "The status can be read at this address.", "address"),
    _event("peer.phase", "The peer, on its way into the run, begins with something that takes a while.", "text"),
    _event("peer.left", "The command has ended in order.", "run steps tokens val_loss digest reason sent_bytes received_bytes "
           "blocked_fraction wall_s saved_to save_problem text_problem connected memory_problem mfu"),
    _error("peer.failed", "The command ended with an error.", "kind"),
)  # fmt: skip
