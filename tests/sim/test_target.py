"""A run that has a target ends there, everywhere, by itself; in virtual time."""

import msgspec
import trio

from legion_p2p.core.control import Wish
from legion_p2p.core.round_spec import RoundSpec
from legion_p2p.core.target import HOLD_S
from legion_p2p.sim.swarm import Swarm

ROUND = RoundSpec(local_steps=5, push_codec="fp32", update_codec="fp32", aggregation="mean", shard_elements=256)


async def test_all_members_end_at_the_target_and_so_does_one_that_joins_later(autojump_clock):
    async with Swarm(numel=1024, round=ROUND, step_s=0.1) as swarm:
        swarm.specified = lambda spec: msgspec.structs.replace(spec, target_steps=400)
        peers = [await swarm.add(name) for name in ("a", "b", "c")]
        await trio.sleep(20)
        left = peers[0].engine.target.left()
        began_early = [peer.engine.control.wish for peer in peers]

        await swarm.until(lambda: all(peer.engine.control.wish is Wish.FINISH for peer in peers), 60, "all have ended")
        ended_at = trio.current_time()
        late = await swarm.add("late")
        await swarm.until(lambda: late.engine.control.wish is Wish.FINISH, 10, "the newcomer as well")

        assert began_early == [Wish.TRAIN] * 3 and left is None  # too early to tell
        assert 38 < ended_at < 46  # 400 steps of 0.1 s, and an announcement
        assert all(peer.engine.target.watch.reason == "the run has made its 400 steps" for peer in [*peers, late])


async def test_tokens_are_those_of_all_members_together_and_a_newcomer_knows_them(autojump_clock):
    async with Swarm(numel=1024, round=ROUND, step_s=0.1) as swarm:
        a, b = await swarm.add("a"), await swarm.add("b")
        await trio.sleep(60)
        late = await swarm.add("late")
        await trio.sleep(20)
        await swarm.settle()

        trained = sum(peer.local_trainer.tokens for peer in (a, b, late))
        counts = [peer.engine.target.run_tokens() for peer in (a, b, late)]
        assert all(abs(count - trained) <= 0.02 * trained for count in counts), (trained, counts)


async def test_a_target_in_tokens_ends_training_everywhere(autojump_clock):
    async with Swarm(numel=1024, round=ROUND, step_s=0.1) as swarm:
        swarm.specified = lambda spec: msgspec.structs.replace(spec, target_tokens=1000)
        peers = [await swarm.add(name) for name in "ab"]

        await swarm.until(lambda: all(peer.engine.control.wish is Wish.FINISH for peer in peers), 120, "all have ended")

        assert all(peer.engine.target.watch.reason == "the run has trained its 1,000 tokens" for peer in peers)
        assert all(peer.engine.target.run_tokens() >= 1000 for peer in peers)


async def test_a_loss_that_most_members_hold_ends_training_everywhere_and_one_that_lies_does_not(autojump_clock):
    async with Swarm(numel=1024, round=ROUND, step_s=0.1) as swarm:
        swarm.specified = lambda spec: msgspec.structs.replace(spec, target_loss=2.0)
        peers = [await swarm.add(name) for name in "abc"]
        for peer, loss in zip(peers, (0.1, 2.5, 2.6), strict=True):
            peer.loss = loss
        await trio.sleep(2 * HOLD_S)
        assert all(peer.engine.control.wish is Wish.TRAIN for peer in peers)

        peers[1].loss = 1.9
        fell_at = trio.current_time()
        await swarm.until(lambda: all(peer.engine.control.wish is Wish.FINISH for peer in peers), 120, "all have ended")

        assert HOLD_S <= trio.current_time() - fell_at < HOLD_S + 15
        assert "the run has come to a loss of 2" in {peer.engine.target.watch.reason for peer in peers}
