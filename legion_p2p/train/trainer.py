"""What `legion-peer` does: build the run's model, feed it its share of the text, train, and keep everybody told."""

import math
import time
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import torch

from legion_p2p.config import Peer, RunChoice, Training
from legion_p2p.core.chunks import ChunkLedger
from legion_p2p.core.control import Wish
from legion_p2p.core.identity import PeerId
from legion_p2p.core.learning_rate import learning_rate
from legion_p2p.core.plan import ParamSpec
from legion_p2p.core.run import RunSpec
from legion_p2p.errors import ClosedError, DecodeError, MissingDataError, NotSavedError, StoreError, UsageError
from legion_p2p.observe.events import PHASE, Events
from legion_p2p.observe.memory import is_out_of_memory
from legion_p2p.observe.metrics import JOIN_WITH, JsonlSink
from legion_p2p.observe.status import Status
from legion_p2p.observe.words import join_command
from legion_p2p.services.run.active_run import ActiveRun
from legion_p2p.services.run.joiner import RunCreation
from legion_p2p.tensor.flatten import FlatView
from legion_p2p.train.bridge import AT_EXIT_S, PeerThread
from legion_p2p.train.companions import write_companions
from legion_p2p.train.compute import Compute, choose_device, memory_advice
from legion_p2p.train.control import Control
from legion_p2p.train.corpus import Corpus, decode
from legion_p2p.train.data import ChunkedWindows, default_chunk_tokens, n_chunks_of
from legion_p2p.train.datasets.folder import with_data
from legion_p2p.train.described import activation_bytes, check_memory, model_of, shape_of, spec_of
from legion_p2p.train.entering import enter
from legion_p2p.train.evaluation import EVAL_WINDOWS, FINAL_EVAL_WINDOWS, evaluate, load_flat
from legion_p2p.train.flops import Utilisation, flops_per_token, peak_flops
from legion_p2p.train.gpt import GPT
from legion_p2p.train.inner import inner_optimizer
from legion_p2p.train.language_model import LanguageModel
from legion_p2p.train.optimizer import Optimizer
from legion_p2p.train.outcome import Outcome
from legion_p2p.train.parameters import param_specs, trainable
from legion_p2p.train.priority import lower_priority
from legion_p2p.train.resume import restore_state, training_state
from legion_p2p.train.run_text import fetch_missing, open_run_text, shared_by
from legion_p2p.train.saving import check_out, save_model
from legion_p2p.train.sharding.loop import ShardedLoop

TARGET_TOGETHER_S = 120.0  # at a run's target all end with the same model; one that never ends must not hold the others up
STOP_FLUSH_S = 0.5  # what an orderly leave grants the last push
STEP_EVENT_EVERY_S = 0.5
STATUS_EVERY_S = 0.5
UNFINISHED = ("stopped", "data", "memory")
"""Reasons to leave at once, without a last evaluation, and without waiting for others."""
SAMPLE_CHARS = 300


def sample_text(gpt: GPT, seed: int, prompt: str = "\ndef ", n: int = SAMPLE_CHARS) -> str:
    """Some text as the built-in model continues `prompt`, where its tokens are bytes."""
    if gpt.config.vocab_size != 256:
        return ""
    device = next(gpt.parameters()).device
    idx = torch.tensor([list(prompt.encode())], dtype=torch.int64, device=device)
    generator = torch.Generator(device=device).manual_seed(seed)
    return decode(gpt.generate(idx, n, temperature=0.8, top_k=40, generator=generator)[0].tolist())


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
    ) -> None:
        self.job = job
        self.events = events
        self.control = control
        self._entry = entry
        self._peer = peer
        self._data = job.data
        self._on_status = on_status
        self._device = choose_device(job.device)
        self._memory_problem = ""
        self._model: LanguageModel | None = None
        self._corpus: Corpus | None = None
        self._run_step = 0
        self._shown_at = 0.0
        self._noted_at = 0.0
        self._evaluated_at = time.monotonic()
        self._text_problem = ""
        self._n_steps = 0
        self._use = Utilisation(0, None)

    def run(self) -> Outcome:
        job = self.job
        if job.threads:
            torch.set_num_threads(job.threads)
        out = check_out(job.out) if job.out else None
        if out is not None:
            self.events.add_sink(JsonlSink(out / "metrics.jsonl"))
        creation = None
        entry = self._entry
        if entry.new_run is not None:
            self.events.emit(PHASE, text="making the model")
            entry = msgspec.structs.replace(entry, new_run=with_data(entry.new_run, job.data))
            assert entry.new_run is not None
            spec, self._model = spec_of(entry.new_run)
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
        for is_last in (False, True):
            try:
                return enter(
                    entry, shared_by(self._peer, self._data), creation=creation, params=self._params_of, events=self.events,
                    given_up=lambda: self.control.leaving,
                )  # fmt: skip
            except MissingDataError as missing:
                if is_last:
                    raise
                self._data = fetch_missing(missing, entry.initial_peers, self._peer, self.events)
        raise AssertionError

    def _params_of(self, spec: RunSpec) -> tuple[ParamSpec, ...]:
        """The parameters of the model that a run describes, as it is joined."""
        self._corpus_of(spec)
        self._model = model_of(spec)
        return param_specs(FlatView(trainable(self._model.module)))

    def _corpus_of(self, spec: RunSpec) -> Corpus:
        """The text to train on, read once: the run is joined when it fits, and the others wait from then on."""
        if self._corpus is None:
            self._corpus = self._open_corpus(spec)
        return self._corpus

    def _open_corpus(self, spec: RunSpec) -> Corpus:
        shape = shape_of(spec)
        if self.job.accumulate > spec.inner.batch:
            raise UsageError(f"--accumulate {self.job.accumulate}: a step of run {spec.name!r} has {spec.inner.batch} windows")
        # before a text is read that would be of no use
        check_memory(spec, 0 if self._device.startswith("cuda") else activation_bytes(spec, self.job))
        return open_run_text(spec, self._data, shape, self.events)

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
        inner = inner_optimizer(spec.inner, model.module)
        opt = Optimizer.beside(thread, inner, model.module, tokens_per_step=spec.inner.batch * model.context, obeys=False)
        data = opt.share(partial(self._reader, corpus, spec, model.context))
        self._go_on(engine, data)
        self._wait_for_members(opt)
        self._run_step = thread.call(engine.run_step)
        began = self._evaluated_at = time.monotonic()
        shape = shape_of(spec)
        per_token = flops_per_token(model.module, shape.n_layer, shape.width, shape.context)
        self._use = Utilisation(per_token, peak_flops(self._device, self.job.precision, self.job.peak_tflops))
        try:
            reason = self._loop(compute, opt, data, spec, corpus, began)
        except (MemoryError, RuntimeError) as bad:
            if not is_out_of_memory(bad):
                raise
            self._memory_problem = memory_advice(bad, self.job, self._device, spec.inner.batch, opt.steps)
            reason = "memory"
        opt.zero_grad()
        if reason in UNFINISHED:
            opt.flush(STOP_FLUSH_S, last=True)
            opt.report(training=False, done=True)
        else:
            self._finish(opt)
        return self._conclude(compute, opt, corpus, engine, thread, out, reason)

    def _reader(
        self, corpus: Corpus, spec: RunSpec, context: int, me: PeerId, members: Callable[[], Iterable[PeerId]]
    ) -> ChunkedWindows:
        chunk_tokens = default_chunk_tokens(len(corpus.train), context)
        ledger = ChunkLedger(n_chunks_of(len(corpus.train), chunk_tokens), me)
        seed = _seed_of(spec, self.job, me)
        return ChunkedWindows(corpus.train, chunk_tokens, context, spec.inner.batch, seed, ledger, members)

    def _go_on(self, engine: ActiveRun, data: ChunkedWindows) -> None:
        """Read on where this peer stopped, if it resumes; and let checkpoints say where it is from now on."""
        if engine.restored is not None:
            try:
                restore_state(engine.restored.state, engine.me, data)
            except DecodeError as bad:
                self.events.emit("data.begins_anew", reason=str(bad))
        engine.checkpoints.trainer_state = lambda: training_state(engine.me, data)

    def _wait_for_members(self, opt: Optimizer) -> None:
        while self.job.wait_for_members and not self._ends(opt):
            status = opt.status
            if sum(m.ready for m in status.members) >= self.job.wait_for_members:
                return
            self._show(opt)
            time.sleep(0.05)

    def _loop(self, compute: Compute, opt: Optimizer, data: ChunkedWindows, spec: RunSpec, corpus: Corpus, began: float) -> str:
        job = self.job
        deadline = began + 60 * job.minutes if job.minutes else math.inf
        smoothed: float | None = None
        while not self._ends(opt) and not self._text_problem:
            if opt.wish is Wish.PAUSE:
                opt.rest()
                self._show(opt)
                if time.monotonic() >= deadline:
                    return "minutes"
                continue
            if job.steps and opt.steps >= job.steps:
                return "steps"
            if time.monotonic() >= deadline:
                return "minutes"
            for group in opt.param_groups:
                group["lr"] = learning_rate(spec.inner, opt.steps, self._run_step + opt.steps)
            try:
                x, y = next(data)
            except StoreError as bad:
                self._text_problem = str(bad)
                break
            value = compute.backward(x, y)
            if spec.inner.clip:
                torch.nn.utils.clip_grad_norm_(compute.model.module.parameters(), spec.inner.clip)
            if math.isfinite(value):  # what has diverged is told of elsewhere, and one such value would spoil all later ones
                smoothed = value if smoothed is None else 0.9 * smoothed + 0.1 * value
            told = self._remaining(opt, began, deadline)
            opt.note(
                loss=smoothed, run_step=self._run_step + opt.steps + 1, mfu=self._use.mfu(opt.speed()["tokens_per_s"]), **told
            )
            opt.step()
            opt.zero_grad()
            self._n_steps = opt.steps
            self._note_step(opt, smoothed)
            self._show(opt)
            if job.eval_every_s and time.monotonic() - self._evaluated_at >= job.eval_every_s:
                self._note_eval(compute, opt, corpus, EVAL_WINDOWS)
        if self._text_problem:
            return "data"
        if self._target_reached(opt):
            return "target"
        return "finished" if opt.wish is Wish.FINISH and not self.control.leaving else "stopped"

    def _target_reached(self, opt: Optimizer) -> bool:
        return opt.target_reached and not self.control.leaving

    def _ends(self, opt: Optimizer) -> bool:
        """Whether its user wants it to train no more."""
        return self.control.leaving or opt.wish.ends

    def _remaining(self, opt: Optimizer, began: float, deadline: float) -> dict[str, Any]:
        elapsed = time.monotonic() - began
        left = deadline - time.monotonic()
        if self.job.steps and opt.steps > 5:
            left = min(left, elapsed / opt.steps * (self.job.steps - opt.steps))
        return {"target_steps": self.job.steps or None, "remaining_s": None if math.isinf(left) else max(0.0, left)}

    def _finish(self, opt: Optimizer) -> None:
        opt.flush(30.0, last=True)
        opt.report(training=False, done=True)
        until = time.monotonic() + TARGET_TOGETHER_S if self._target_reached(opt) else 0.0
        while time.monotonic() < until and not self.control.leaving and not opt.all_done:
            opt.wait_briefly()
            self._show(opt)
        while self.job.finish_together and not self._ends(opt) and not opt.all_done:
            opt.wait_briefly()
            self._show(opt)

    def _conclude(
        self, compute: Compute, opt: Optimizer, corpus: Corpus, engine: ActiveRun, thread: PeerThread, out: Path | None,
        reason: str,
    ) -> Outcome:  # fmt: skip
        model = compute.model
        flat = opt.common_parameters()
        digest = opt.common_digest()
        status = opt.status
        load_flat(model.module, flat)
        saved_to, save_problem = self._save(model, out, {"run": engine.id, "digest": digest, "step": str(opt.steps)})
        if out is not None and saved_to and engine.spec is not None and engine.spec.transformers:
            write_companions(out, engine.spec, b"" if corpus.prepared is None else corpus.prepared.tokenizer)
        val_loss = None if reason in UNFINISHED else self._evaluate(compute, corpus, FINAL_EVAL_WINDOWS)
        self.events.emit(
            "run.finished",
            reason=reason,
            step=opt.steps,
            tokens=opt.tokens,
            val_loss=val_loss,
            digest=digest,
            sent_bytes=status.sent_bytes,
            received_bytes=status.received_bytes,
            region=status.region,
            bytes_in_region=status.bytes_in_region,
            bytes_across=status.bytes_across,
            rounds=status.rounds,
            blocked_fraction=round(opt.blocked_fraction, 5),
        )
        self._show(opt, force=True)
        return Outcome(
            opt.steps, opt.tokens, val_loss, digest, reason, status.sent_bytes, status.received_bytes, opt.blocked_fraction,
            saved_to, save_problem, self._text_problem, tuple(thread.call(engine.messenger.connected)), self._memory_problem,
            self._use.mfu(opt.speed()["tokens_per_s"]),
        )  # fmt: skip

    def _save(self, model: LanguageModel, out: Path | None, metadata: dict[str, str]) -> tuple[str, str]:
        """Where the model is, and what is wrong with that; empty: nothing."""
        if out is None:
            return "", ""
        try:
            # A tied output matrix is the embedding: it is stored once.
            return str(save_model(list(trainable(model.module)), out, metadata)), ""
        except NotSavedError as bad:
            self.events.error("model.not_saved", str(bad))
            return "", str(bad)

    def _rescue(self, out: Path | None) -> None:
        """The peer fails. What it has trained itself is all that there is of the model, unless a store has more."""
        if self._model is not None and self._n_steps:
            path, _ = self._save(self._model, out, {"step": str(self._n_steps), "of": "this peer alone"})
            if path:
                self.events.emit("model.rescued", text=f"this peer's own parameters are in {path}")

    def _note_step(self, opt: Optimizer, loss: float | None) -> None:
        now = time.monotonic()
        if now - self._noted_at >= STEP_EVENT_EVERY_S or opt.steps == 1:
            self._noted_at = now
            shown = None if loss is None else round(loss, 4)
            self.events.emit(
                "step",
                step=opt.steps,
                tokens=opt.tokens,
                loss=shown,
                mfu=self._use.mfu(opt.speed()["tokens_per_s"]),
                **opt.speed(),
            )

    def _note_eval(self, compute: Compute, opt: Optimizer, corpus: Corpus, n_windows: int) -> None:
        mine = opt.local.view.snapshot()
        load_flat(compute.model.module, opt.common_parameters())
        val_loss = self._evaluate(compute, corpus, n_windows)
        load_flat(compute.model.module, mine)
        self._evaluated_at = time.monotonic()
        if val_loss is not None:
            self.events.emit("eval", step=opt.steps, tokens=opt.tokens, val_loss=round(val_loss, 5))

    def _evaluate(self, compute: Compute, corpus: Corpus, n_windows: int) -> float | None:
        """The loss on held-out text; None where that could not be read."""
        try:
            return evaluate(compute.model, corpus, n_windows, self._device, compute.precise())
        except StoreError as bad:
            self._text_problem = str(bad)
            return None

    def _show(self, opt: Optimizer, *, force: bool = False) -> None:
        now = time.monotonic()
        if self._on_status is not None and (force or now - self._shown_at >= STATUS_EVERY_S):
            self._shown_at = now
            self._on_status(opt.status)


def _seed_of(spec: RunSpec, job: Training, me: PeerId) -> int:
    """Different at every peer, repeatable for one identity and --seed."""
    return (spec.seed * 1_000_003 + job.seed * 7919 + sum(me.encode())) % (1 << 62)
