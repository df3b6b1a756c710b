"""What `legion-peer` does: it builds the run's model, reads its text, joins, trains, and leaves."""

from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path

import msgspec
import torch

from legion_p2p.config import Peer, RunChoice, Training
from legion_p2p.core.chunks import ChunkLedger
from legion_p2p.core.identity import PeerId
from legion_p2p.core.plan import ParamSpec
from legion_p2p.core.run import RunSpec
from legion_p2p.errors import ClosedError, MissingDataError, UsageError
from legion_p2p.observe.event_text import JOIN_WITH
from legion_p2p.observe.events import PHASE, Events
from legion_p2p.observe.metrics import JsonlSink
from legion_p2p.observe.status import Status
from legion_p2p.observe.words import join_command
from legion_p2p.services.run.fitting import Fitting
from legion_p2p.services.run.joiner import RunCreation
from legion_p2p.tensor.flatten import FlatView
from legion_p2p.train.batches import ChunkedWindows, default_chunk_tokens, n_chunks_of
from legion_p2p.train.bridge import AT_EXIT_S, PeerThread
from legion_p2p.train.compute import Compute, choose_device
from legion_p2p.train.control import Control
from legion_p2p.train.corpus import Corpus
from legion_p2p.train.datasets.stream import StreamedWindows
from legion_p2p.train.described import check_memory, model_of, shape_of, spec_of
from legion_p2p.train.entering import enter
from legion_p2p.train.examiner import Examiner, QuestionTest
from legion_p2p.train.language_model import LanguageModel
from legion_p2p.train.loop import TrainingLoop
from legion_p2p.train.loop_report import save_or_tell
from legion_p2p.train.niceness import lower_priority
from legion_p2p.train.outcome import Outcome
from legion_p2p.train.parameters import param_specs, trainable
from legion_p2p.train.peer_memory import activation_bytes, kept_bytes
from legion_p2p.train.question_files import QuestionTask, read_tasks
from legion_p2p.train.rank_work import RankWork, device_of_rank
from legion_p2p.train.run_text import check_source, fetch_missing, open_run_text, shared_by
from legion_p2p.train.saving import check_out
from legion_p2p.train.sharding.loop import ShardedLoop
from legion_p2p.train.sharing import TextReader
from legion_p2p.train.streamed_text import is_held_out, reading, with_text


class Trainer:
    """One job, from joining to leaving."""

    def __init__(
        self,
        entry: RunChoice,
        peer: Peer,
        job: Training,
        events: Events,
        control: Control,
        on_status: Callable[[Status], None] | None,
        ranks: RankWork | None = None,
    ) -> None:
        """`ranks`: other processes that compute parts of the batches."""
        self.job = job
        self._ranks = ranks
        self.events = events
        self.control = control
        self._entry = entry
        self._peer = peer
        self._data = job.data
        self._on_status = on_status
        self._device = choose_device(job.device) if ranks is None else device_of_rank(choose_device(job.device))
        self._model: LanguageModel | None = None
        self._corpus: Corpus | None = None
        self._loop: TrainingLoop | None = None
        self._tasks: tuple[QuestionTask, ...] = ()
        self._test: QuestionTest | None = None

    def run(self) -> Outcome:
        job = self.job
        if job.threads:
            torch.set_num_threads(job.threads)
        self._tasks = read_tasks(job.eval_tasks)
        out = check_out(job.out) if job.out else None
        if out is not None:
            self.events.add_sink(JsonlSink(out / "metrics.jsonl"))
        creation = None
        entry = self._entry
        if entry.new_run is not None:
            self.events.emit(PHASE, text="making the model")
            entry = msgspec.structs.replace(entry, new_run=with_text(entry.new_run, job.data, job.tokenizer))
            assert entry.new_run is not None
            spec, self._model = spec_of(entry.new_run, (self._peer.store.path,))
            creation = RunCreation(spec, FlatView(trainable(self._model.module)).snapshot())
            self._corpus_of(spec)  # a text that cannot be read should not leave a run behind
        try:
            thread = self._enter(entry, creation)
        except ClosedError:
            if not self.control.leaving:
                raise
            return Outcome(0, 0, None, "", "stopped")
        try:
            self.control.attach(thread)
            if self._peer.manners.priority == "low":
                lower_priority()
            return self._train(thread, out)
        except Exception:
            self._rescue(out)
            raise
        finally:
            thread.close(AT_EXIT_S)

    def _enter(self, entry: RunChoice, creation: RunCreation | None) -> PeerThread:
        """Into the run; with its data, if this peer has it not and others do."""
        fitting = Fitting(self._params_of, self._corpus_of)
        for is_last in (False, True):
            try:
                return enter(
                    entry, shared_by(self._peer, self._data), creation=creation, params=fitting, events=self.events,
                    given_up=lambda: self.control.leaving,
                )  # fmt: skip
            except MissingDataError as missing:
                if is_last:
                    raise
                self._data = fetch_missing(missing, entry.initial_peers, self._peer, self.events)
        raise AssertionError

    def _params_of(self, spec: RunSpec) -> tuple[ParamSpec, ...]:
        """The parameters of the model that a run describes, as it is joined. Raises: MissingDataError, UsageError."""
        self._check(spec)
        self._model = model_of(spec)
        return param_specs(FlatView(trainable(self._model.module)))

    def _corpus_of(self, spec: RunSpec) -> Corpus:
        """The text to train on, read once: the run is joined when it fits, and the others wait from then on."""
        if self._corpus is None:
            self._check(spec)
            shape = shape_of(spec)
            self._corpus = open_run_text(spec, self._data, shape, self.events, self.job.tokenizer)
            if self._tasks:
                self._test = QuestionTest(self._tasks, self.job.eval_tasks_every, self._corpus, shape.context)
        return self._corpus

    def _check(self, spec: RunSpec) -> None:
        """What takes no time, before a text is read that would be of no use. Raises: MissingDataError, UsageError."""
        check_source(spec, self._data)
        if self._ranks is not None:
            self._ranks.check(spec)
        if self.job.accumulate > spec.inner.batch:
            raise UsageError(f"--accumulate {self.job.accumulate}: a step of run {spec.name!r} has {spec.inner.batch} windows")
        if self.job.average and spec.sharding == "full":
            raise UsageError("--average: in a sharded run no member has the whole model")
        if self.job.keep_best and spec.sharding == "full":
            raise UsageError("--keep-best: in a sharded run no member has the whole model")
        if self._tasks and spec.sharding == "full":
            raise UsageError("--eval-tasks: in a sharded run no member has the whole model, so none can answer questions")
        beside = 0 if self._device.startswith("cuda") else activation_bytes(spec, self.job)
        check_memory(spec, beside + kept_bytes(spec, self.job))

    def _train(self, thread: PeerThread, out: Path | None) -> Outcome:
        engine = thread.engine
        spec = engine.spec
        assert spec is not None and self._model is not None
        corpus = self._corpus_of(spec)
        addresses = thread.call(engine.network.addresses)
        if addresses:
            self.events.emit(JOIN_WITH, command=join_command(spec.name, addresses))
        model = self._model
        compute = Compute(model, self._device, self.job)
        if spec.sharding == "full":
            loop = ShardedLoop(thread, compute, self.job, self.events, self.control, self._on_status)
            return loop.run(corpus, partial(self._reader, corpus, spec, model.context), out)
        if self._ranks is not None:
            self._ranks.begin(spec)
        self._loop = TrainingLoop(thread, compute, self.job, self.events, self.control, self._on_status, self._ranks)
        if self._test is not None:
            self._loop.examiner = Examiner(thread, compute, self._test)
        return self._loop.run(corpus, partial(self._reader, corpus, spec, model.context), out)

    def _reader(
        self, corpus: Corpus, spec: RunSpec, context: int, me: PeerId, members: Callable[[], Iterable[PeerId]]
    ) -> TextReader:
        if corpus.streamed is not None:
            text = corpus.streamed
            return StreamedWindows(text.sources, text.tokenizer, context, spec.inner.batch, me, members, reading(), is_held_out)
        chunk_tokens = default_chunk_tokens(len(corpus.train), context)
        ledger = ChunkLedger(n_chunks_of(len(corpus.train), chunk_tokens), me)
        seed = _seed_of(spec, self.job, me)
        return ChunkedWindows(corpus.train, chunk_tokens, context, spec.inner.batch, seed, ledger, members)

    def _rescue(self, out: Path | None) -> None:
        """The peer fails. What it has trained itself is all that there is of the model, unless a store has more."""
        n_steps = 0 if self._loop is None else self._loop.opt.steps
        if self._model is not None and out is not None and n_steps:
            path, _ = save_or_tell(self._model, out, {"step": str(n_steps), "of": "this peer alone"}, self.events)
            if path:
                self.events.emit("model.rescued", text=f"this peer's own parameters are in {path}")


def _seed_of(spec: RunSpec, job: Training, me: PeerId) -> int:
    """Different at every peer, repeatable for one identity and --seed."""
    return (spec.seed * 1_000_003 + job.seed * 7919 + sum(me.encode())) % (1 << 62)
