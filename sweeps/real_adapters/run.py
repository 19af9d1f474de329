"""The whole run: what is done is kept, what is missing is made, the replay is written last.

In the folder OUT::

    settings.json        what everything in it was made with
    adapters/NAME/       PEFT's two files, and loss.json
    scores/NAME.npz      what the adapter answers on the test split
    clinc150_adapters.npz, figures.json, figures.md
"""

import json
import os
import pathlib
import shutil
import tempfile
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from sweeps.real_adapters import adapter, base_model, clinc, contexts, head, replay, training
from sweeps.real_adapters.library import RANKS, Member, members

# Counts up when the same settings would no longer give the same numbers.
METHOD = 1
# Of the order of the replay's rows.
ORDER_SEED = 0
# Learning from a prompt costs about this many times what answering it does.
_LEARNING = 2.2


class Say(NamedTuple):
    """How a run tells what it does."""

    line: Callable[[str], object]
    work: Callable[[float], object]  # how much of `work_of` has been done


class _Ready(NamedTuple):
    """All that the adapters share."""

    model: base_model.BaseModel
    params: Any  # on the device
    data: clinc.Clinc
    tokens: dict[str, list[list[int]]]
    head: head.Head
    classifier: contexts.Classifier
    test: np.ndarray  # [M, E] embeddings of the test split under the bare model


def work_of(data: clinc.Clinc, settings: training.Settings, out: pathlib.Path) -> float:
    """How much work is left, in prompts answered."""
    base = len(data.val.prompts) + len(data.test.prompts) + settings.shots * len(data.intents)
    left = 0.0
    for member in members(data.domains):
        if not _scores(out, member).exists():
            left += len(data.test.prompts)
            if not _folder(out, member).exists():
                left += _LEARNING * settings.steps * settings.batch
    return base + left


def run(
    model: base_model.BaseModel,
    data: clinc.Clinc,
    settings: training.Settings,
    out: pathlib.Path,
    say: Say,
) -> dict[str, Any]:
    """Trains what `out` lacks, evaluates it, and writes the replay.

    Args:
      model: the base model.
      data: prompts.
      settings: of the training.
      out: a folder, made where it is missing; of an earlier run only if its settings are these.
      say: hears lines and work done.

    Returns:
      `replay.figures` of the result.

    Raises:
      ValueError: if `out` was made with other settings, holds other things, or is damaged.
      FloatingPointError: if a loss is no finite number.
    """
    _claim(out, model, data, settings)
    ready = _prepare(model, data, settings, say)
    library = members(data.domains)
    for number, member in enumerate(library):
        if not _scores(out, member).exists():
            began = time.monotonic()
            if not _folder(out, member).exists():
                _train(ready, settings, out, number, member, say)
            answers = _answers(ready, out, member, say)
            replay.write(_scores(out, member), answers)
            seconds = f"{time.monotonic() - began:.0f} s"
        else:
            answers, seconds = _read(_scores(out, member), len(data.test.prompts)), "kept"
        inside = np.isin(data.test.domain, [data.domains.index(one) for one in member.domains])
        say.line(f"{number + 1:2d}/{len(library)} {_told(member, answers, inside)} ({seconds})")
    made = _gather(ready, out, library)
    replay.check(made)
    replay.write(out / replay.FILE, made._asdict())
    found = replay.figures(made)
    found["head_scale"], found["classifier"] = ready.head.scale, _told_classifier(ready)
    _write_text(out / "figures.json", json.dumps(found, indent=2) + "\n")
    _write_text(out / "figures.md", replay.as_markdown(found))
    return found


def _claim(
    out: pathlib.Path,
    model: base_model.BaseModel,
    data: clinc.Clinc,
    settings: training.Settings,
) -> None:
    """Marks the folder with what it is made with, or compares with the mark that it has."""
    prompts = {name: len(getattr(data, name).prompts) for name in clinc.SPLITS}
    ours = {
        "method": METHOD,
        "model_sha256": model.sha256,
        "data_sha256": data.sha256,
        "prompts": prompts,
        **settings._asdict(),
    }
    file = out / "settings.json"
    if not file.exists():
        # Hidden names are of another run that is about to claim it too.
        if out.is_dir() and any(not path.name.startswith(".") for path in out.iterdir()):
            raise ValueError(
                f"--out must be new, empty or of an earlier run; {str(out)!r} holds other things."
            )
        out.mkdir(parents=True, exist_ok=True)
        _write_text(file, json.dumps(ours, indent=2) + "\n")
    try:
        theirs = dict(json.loads(file.read_text("utf-8")))
    except (ValueError, TypeError) as error:
        raise ValueError(f"{str(file)!r} must be what a run wrote, got {error}.") from None
    if differing := [name for name in ours if ours[name] != theirs.get(name)]:
        shown = "; ".join(f"{one} {theirs.get(one)!r}, not {ours[one]!r}" for one in differing)
        raise ValueError(
            f"--out {str(out)!r} was made with other settings ({shown}): name another."
        )
    for name in ("adapters", "scores"):
        (out / name).mkdir(exist_ok=True)


def _prepare(
    model: base_model.BaseModel, data: clinc.Clinc, settings: training.Settings, say: Say
) -> _Ready:
    """The bare model's part: head, classifier of domains, embeddings of the test split."""
    import jax

    params = jax.device_put(model.params)
    splits = {name: getattr(data, name) for name in clinc.SPLITS}
    tokens = {name: base_model.tokenize(model, one.prompts) for name, one in splits.items()}
    examples = head.example_rows(data.train.intent, settings.shots, settings.seed)

    def embed(chosen: list[list[int]]) -> np.ndarray:
        return training.embed(model.shape, params, chosen, say.work)

    held_out = embed(tokens["val"])
    shared = head.fit(
        embed([tokens["train"][row] for row in examples]),
        data.train.intent[examples],
        held_out,
        data.val.intent,
    )
    count = len(data.domains)
    classifier = contexts.fit(held_out, data.val.domain, count, seed=settings.seed)
    test = embed(tokens["test"])
    return _Ready(model, params, data, tokens, shared, classifier, test)


def _train(
    ready: _Ready,
    settings: training.Settings,
    out: pathlib.Path,
    number: int,
    member: Member,
    say: Say,
) -> None:
    """Trains one adapter; its folder appears when it is complete."""
    data = ready.data
    domains = [data.domains.index(name) for name in member.domains]
    lora, losses = training.train(
        ready.model.shape,
        ready.params,
        ready.head,
        training.Lesson(
            ready.tokens["train"],
            data.train.intent,
            np.flatnonzero(np.isin(data.train.domain, domains)),
        ),
        rank=member.rank,
        padded=max(RANKS),
        number=number,
        settings=settings,
        done=lambda prompts: say.work(_LEARNING * prompts),
    )
    folder = _folder(out, member)
    temporary = pathlib.Path(tempfile.mkdtemp(prefix=f".{member.name}-", dir=folder.parent))
    try:
        temporary.chmod(0o755)
        adapter.save(temporary, lora, member.rank)
        _write_text(temporary / "loss.json", json.dumps([round(one, 5) for one in losses]) + "\n")
        try:
            temporary.replace(folder)
        except OSError:
            # Another run of the same settings was faster: its adapter is this one.
            if not folder.is_dir():
                raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _answers(ready: _Ready, out: pathlib.Path, member: Member, say: Say) -> dict[str, np.ndarray]:
    """What an adapter, as it is on disk, answers on the test split."""
    lora = adapter.load(_folder(out, member), ready.model.shape)
    merged = adapter.merge(ready.params, lora)
    found = training.embed(ready.model.shape, merged, ready.tokens["test"], say.work)
    return _scored(ready.head, found, ready.data.test.intent)


def _scored(shared: head.Head, found: np.ndarray, intent: np.ndarray) -> dict[str, np.ndarray]:
    logits = head.logits(shared, found)
    log_probability = head.log_probability(logits, intent)
    return {
        "log_probability": log_probability.astype(np.float32),
        "correct": (logits.argmax(axis=1) == intent).astype(np.uint8),
    }


def _gather(ready: _Ready, out: pathlib.Path, library: tuple[Member, ...]) -> replay.Replay:
    """All answers as one matrix.

    CLINC150 lists its prompts intent by intent, which no stream of requests does, and records no
    order of arrival. So rows are shuffled, once and for all: whoever reads them from the first to
    the last gets independent draws. The numbers in the test split are kept beside them.
    """
    test = ready.data.test
    answers = [_read(_scores(out, member), test.intent.size) for member in library]
    rows = np.random.default_rng(ORDER_SEED).permutation(test.intent.size)
    base = _scored(ready.head, ready.test, test.intent)
    log_probability = np.stack([one["log_probability"] for one in answers], axis=1)
    return replay.Replay(
        contexts=contexts.probabilities(ready.classifier, ready.test)[rows],
        utilities=np.exp(log_probability.astype(np.float64)).astype(np.float32)[rows],
        log_probability=log_probability[rows],
        correct=np.stack([one["correct"] for one in answers], axis=1)[rows],
        base_log_probability=base["log_probability"][rows],
        base_correct=base["correct"][rows],
        test_rows=rows.astype(np.int32),
        domains=test.domain[rows],
        intents=test.intent[rows],
        domain_names=np.array(ready.data.domains),
        intent_names=np.array(ready.data.intents),
        adapters=np.array([member.name for member in library]),
        ranks=np.array([member.rank for member in library], np.int32),
    )


def _read(file: pathlib.Path, prompts: int) -> dict[str, np.ndarray]:
    """One adapter's answers, as `_scored` made them."""
    try:
        with np.load(file, allow_pickle=False) as opened:
            answers = dict(opened)
        if answers["correct"].shape != (prompts,) or answers["log_probability"].shape != (prompts,):
            raise ValueError(f"must have {prompts} answers, got {answers['correct'].shape}")
    except (ValueError, KeyError, OSError, EOFError) as error:
        raise ValueError(f"{str(file)!r}: {error}; delete it and run again.") from error
    return answers


def _told(member: Member, answers: dict[str, np.ndarray], inside: np.ndarray) -> str:
    right, utility = answers["correct"], np.exp(answers["log_probability"])
    parts = [f"inside {right[inside].mean():.3f} (utility {utility[inside].mean():.3f})"]
    if not inside.all():
        parts.append(f"outside {right[~inside].mean():.3f} ({utility[~inside].mean():.3f})")
    return f"{member.name}: {', '.join(parts)}"


def _told_classifier(ready: _Ready) -> dict[str, float]:
    found = contexts.probabilities(ready.classifier, ready.test).argmax(axis=1)
    return {
        "penalty": ready.classifier.penalty,
        "held_out_loss": ready.classifier.held_out_loss,
        "test_accuracy": float((found == ready.data.test.domain).mean()),
    }


def _write_text(file: pathlib.Path, text: str) -> None:
    """Writes a file that appears complete or not at all."""
    temporary = file.with_name(f".{file.name}.{os.getpid()}")
    temporary.write_text(text, "utf-8")
    temporary.replace(file)


def _folder(out: pathlib.Path, member: Member) -> pathlib.Path:
    return out / "adapters" / member.name


def _scores(out: pathlib.Path, member: Member) -> pathlib.Path:
    return out / "scores" / f"{member.name}.npz"
