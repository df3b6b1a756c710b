"""A small run with a checkpoint, as peers would have written it: bases, and updates since with real codecs."""

import msgspec
import torch

from legion_p2p.core.cids import Cid
from legion_p2p.core.identity import Identity, PeerId
from legion_p2p.core.manifest import Manifest, StoredShard
from legion_p2p.core.plan import ParamSpec
from legion_p2p.core.round_spec import RoundSpec
from legion_p2p.core.run import RunSpec, SignedSpec, sign_spec
from legion_p2p.core.wire import Inclusion, Update, UpdateHeader, encode
from legion_p2p.store.blocks import BlockStore
from legion_p2p.store.checkpoints import publish, put_base, put_node, put_spec, put_update
from legion_p2p.tensor import codec
from legion_p2p.tensor.flatten import digest
from legion_p2p.train.gpt import GPT
from legion_p2p.train.gpt_config import GPTConfig

FOUNDER = Identity(b"f" * 32)
TINY = GPTConfig(n_layer=2, n_head=2, width=16, context=8, vocab_size=31, bias=True)


class Run:
    """A run of the built-in GPT whose references change by random updates."""

    def __init__(self, config: GPTConfig = TINY, shard_elements: int = 1000, seed: int = 0, update_codec: str = "int8") -> None:
        self.generator = torch.Generator().manual_seed(seed)
        self.model = GPT(config, self.generator)
        params = tuple(ParamSpec(name, tuple(p.shape)) for name, p in self.model.named_parameters())
        round_spec = RoundSpec(shard_elements=shard_elements, update_codec=update_codec)
        model = msgspec.to_builtins(config)
        self.spec = RunSpec("tiny", FOUNDER.peer_id, params, round_spec, model=model)
        self.signed: SignedSpec = sign_spec(self.spec, FOUNDER)
        self.plan = self.spec.plan()
        self.flat = torch.cat([p.detach().reshape(-1) for p in self.model.parameters()])
        self.versions = [0] * self.plan.n_shards
        self.bases: list[Cid] = []
        self.logs: list[list[tuple[Cid, ...]]] = []

    def put_bases(self, store: BlockStore) -> None:
        self.bases, self.logs = [], [[] for _ in range(self.plan.n_shards)]
        for shard in range(self.plan.n_shards):
            data = self.reference(shard).numpy().tobytes()
            self.bases.append(put_base(store, self.versions[shard], [Inclusion(FOUNDER.peer_id, 4)], data))

    def reference(self, shard: int) -> torch.Tensor:
        start, end = self.plan.bounds(shard)
        return self.flat[start:end]

    def update(self, store: BlockStore, shard: int) -> None:
        reference = self.reference(shard)
        used = codec.get(self.spec.round.update_codec)
        payload = used.encode(torch.randn(len(reference), generator=self.generator) * 0.01)
        before = digest(reference)
        reference -= used.decode(payload, len(reference))
        self.versions[shard] += 1
        header = encode(
            UpdateHeader(
                str(Cid.of(self.signed.spec)), shard, self.versions[shard], before, digest(reference), FOUNDER.peer_id,
                used.name, (), (), 1, 1,
            )
        )  # fmt: skip
        self.logs[shard].append(put_update(store, encode(Update(header, FOUNDER.sign(header), payload))))

    def publish(self, store: BlockStore, step: int = 10, parent: str = "", publisher: Identity = FOUNDER, **changes) -> Cid:
        run = put_spec(store, self.signed)
        shards = tuple(
            put_node(store, StoredShard(i, self.versions[i], digest(self.reference(i)), self.bases[i], tuple(self.logs[i])))
            for i in range(self.plan.n_shards)
        )
        manifest = Manifest(run, self.signed.signature, step, shards, PeerId(publisher.peer_id), 1_700_000_000 + step, parent)
        return publish(store, msgspec.structs.replace(manifest, **changes), publisher, f"step {step}")


def checkpointed(store: BlockStore, n_updates: int = 2, **kwargs) -> tuple[Run, Cid]:
    """A run, and its checkpoint in the store."""
    run = Run(**kwargs)
    run.put_bases(store)
    for _ in range(n_updates):
        for shard in range(run.plan.n_shards):
            run.update(store, shard)
    return run, run.publish(store)
