"""The measured matrix as a file, the same bytes for the same numbers, and what is in it."""

import io
import itertools
import math
import os
import pathlib
import zipfile
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

FILE = "clinc150_adapters.npz"
RIDGE, FOLDS = 1.0, 5
SLOTS = 4
# The earliest time a zip file can hold.
_TIME = (1980, 1, 1, 0, 0, 0)


class Replay(NamedTuple):
    """What every adapter did on every test prompt: `M` prompts, `N` adapters, `d` features."""

    contexts: np.ndarray  # [M, d] float32, domain probabilities
    utilities: np.ndarray  # [M, N] float32, probability of the right intent
    log_probability: np.ndarray  # [M, N] float32, its logarithm, nats
    correct: np.ndarray  # [M, N] uint8, whether the likeliest intent is the right one
    base_log_probability: np.ndarray  # [M] float32, of the bare model
    base_correct: np.ndarray  # [M] uint8
    test_rows: np.ndarray  # [M] int32, the prompt's row in CLINC150's test split, from 0
    domains: np.ndarray  # [M] int32, the prompt's domain
    intents: np.ndarray  # [M] int32, the prompt's intent, domain by domain
    domain_names: np.ndarray  # [D] unicode
    intent_names: np.ndarray  # [C] unicode
    adapters: np.ndarray  # [N] unicode
    ranks: np.ndarray  # [N] int32


def write(path: pathlib.Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Writes a compressed `.npz` that appears complete or not at all.

    Args:
      path: of the file; one that exists is replaced.
      arrays: by name. No objects: the file needs no pickle.

    Raises:
      ValueError: for an array of objects.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with zipfile.ZipFile(temporary, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as archive:
            for name, array in arrays.items():
                data = io.BytesIO()
                np.lib.format.write_array(data, np.ascontiguousarray(array), allow_pickle=False)
                # Times and modes would differ from run to run.
                entry = zipfile.ZipInfo(f"{name}.npy", _TIME)
                entry.compress_type, entry.external_attr = zipfile.ZIP_DEFLATED, 0o644 << 16
                archive.writestr(entry, data.getvalue())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def figures(replay: Replay) -> dict[str, Any]:
    """What a router and a cache can gain on it.

    Every value is a mean over prompts, once of the probability of the right answer (`utility`)
    and once of its being the likeliest (`accuracy`). The choices are those that maximise
    utility, in hindsight over all prompts, as `C*` of docs/model.md is.

    Returns:
      `base`, `best_single`, `best_static_set` (`SLOTS` adapters, perfect routing by utility),
      `best_per_domain`, `linear_router` (ridge in hindsight, cross-fitted over `FOLDS` folds),
      `oracle`: each `{utility, accuracy}`, with the names chosen where there are any;
      `linear_r2`: of the utilities on the contexts, cross-fitted; `adapters`: per adapter
      accuracy and utility over all prompts, inside its own domains and outside.
    """
    u, right = replay.utilities.astype(np.float64), replay.correct.astype(np.float64)
    names = [str(name) for name in replay.adapters]

    def chosen(actions: np.ndarray) -> dict[str, Any]:
        rows = np.arange(actions.size)
        return {"utility": u[rows, actions].mean(), "accuracy": right[rows, actions].mean()}

    best = int(u.mean(axis=0).argmax())
    sets = itertools.combinations(range(len(names)), min(SLOTS, len(names)))
    kept = max(sets, key=lambda one: u[:, one].max(axis=1).mean())
    by_domain = np.stack(
        [u[replay.domains == d].mean(axis=0) for d in range(replay.domain_names.size)]
    ).argmax(axis=1)
    predicted, r2 = _cross_fitted(replay.contexts.astype(np.float64), u)
    return {
        "base": {
            "utility": np.exp(replay.base_log_probability.astype(np.float64)).mean(),
            "accuracy": replay.base_correct.mean(),
        },
        "best_single": {"adapter": names[best], **chosen(np.full(len(u), best))},
        "best_static_set": {
            "adapters": [names[i] for i in kept],
            **chosen(np.array(kept)[u[:, kept].argmax(axis=1)]),
        },
        "linear_router": chosen(predicted.argmax(axis=1)),
        "best_per_domain": {
            "adapters": [names[i] for i in by_domain],
            **chosen(by_domain[replay.domains]),
        },
        "oracle": chosen(u.argmax(axis=1)),
        "linear_r2": {"mean": r2.mean(), "least": r2.min(), "most": r2.max()},
        "adapters": _by_adapter(replay, u, right),
    }


def _by_adapter(replay: Replay, u: np.ndarray, right: np.ndarray) -> list[dict[str, Any]]:
    """Accuracy and utility of each adapter; outside is None for the generalist."""
    domains = [str(name) for name in replay.domain_names]
    rows = []
    for i, name in enumerate(map(str, replay.adapters)):
        own = name.rsplit("-r", 1)[0].split("+")
        inside = np.isin(replay.domains, [domains.index(one) for one in own if one in domains])
        if own == ["generalist"]:
            inside[:] = True
        row: dict[str, Any] = {"adapter": name}
        for label, values in (("accuracy", right[:, i]), ("utility", u[:, i])):
            row[label] = values.mean()
            row[f"{label}_inside"] = values[inside].mean()
            row[f"{label}_outside"] = None if inside.all() else values[~inside].mean()
        rows.append(row)
    return rows


def _cross_fitted(x: np.ndarray, u: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Ridge predictions `[M, N]` of utilities, each row from the other folds, and `R2 [N]`."""
    fold = np.arange(len(x)) % FOLDS
    predicted = np.zeros_like(u)
    for number in range(FOLDS):
        held = fold == number
        gram = x[~held].T @ x[~held] + RIDGE * np.eye(x.shape[1])
        predicted[held] = x[held] @ np.linalg.solve(gram, x[~held].T @ u[~held])
    total = np.square(u - u.mean(axis=0)).sum(axis=0)
    with np.errstate(divide="ignore", invalid="ignore"):
        r2 = 1 - np.square(u - predicted).sum(axis=0) / total
    return predicted, np.where(total > 0, r2, 0.0)


def as_markdown(found: Mapping[str, Any]) -> str:
    """The figures as two tables."""
    words = {
        "base": "no adapter",
        "best_single": "best single adapter",
        "linear_router": "linear router in hindsight on the contexts, all resident",
        "best_static_set": f"best {SLOTS} adapters, perfect routing",
        "best_per_domain": "best adapter of the true domain",
        "oracle": "best adapter of each prompt",
    }
    lines = ["| | utility | accuracy | which |", "|---|---|---|---|"]
    for key, word in words.items():
        one = found[key]
        which = one.get("adapter") or ", ".join(dict.fromkeys(one.get("adapters", [])))
        lines.append(f"| {word} | {one['utility']:.3f} | {one['accuracy']:.3f} | {which} |")
    r2 = found["linear_r2"]
    lines += ["", f"Linear R2 of utilities on contexts: {r2['mean']:.2f} "]
    lines[-1] += f"({r2['least']:.2f} to {r2['most']:.2f} by adapter)."
    lines += [
        "",
        "| adapter | accuracy: all | inside | outside | utility: all | inside | outside |",
    ]
    lines.append("|---|---|---|---|---|---|---|")
    for row in found["adapters"]:
        cells = [
            "" if row[f"{label}{where}"] is None else f"{row[f'{label}{where}']:.3f}"
            for label in ("accuracy", "utility")
            for where in ("", "_inside", "_outside")
        ]
        lines.append(f"| `{row['adapter']}` | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def check(replay: Replay) -> None:
    """Raises `ValueError` where numbers are no probabilities or no finite numbers."""
    for name in ("contexts", "utilities", "log_probability", "base_log_probability"):
        values = getattr(replay, name)
        if not np.isfinite(values).all():
            raise ValueError(f"{name} must be finite, got {int((~np.isfinite(values)).sum())} not.")
    if not math.isclose(float(np.abs(replay.contexts.sum(axis=1) - 1).max()), 0, abs_tol=1e-5):
        raise ValueError("rows of contexts must add up to 1.")
