"""CLINC150 as arrays: prompts, intents, domains; from the files of clinc/oos-eval."""

import gzip
import hashlib
import json
import pathlib
import zlib
from typing import Any, NamedTuple

import numpy as np

from sweeps.real_adapters.library import PAIRS

PROMPT_FILES = ("data_full.json", "clinc150_data_full.json")
DOMAIN_FILES = ("domains.json", "clinc150_domains.json")
SPLITS = ("train", "val", "test")
NUM_DOMAINS = 10


class Split(NamedTuple):
    """`M` labelled prompts."""

    prompts: tuple[str, ...]
    intent: np.ndarray  # [M] int32, index into `Clinc.intents`
    domain: np.ndarray  # [M] int32, index into `Clinc.domains`


class Clinc(NamedTuple):
    """The data set; prompts of no intent (`oos`) are left out, as no adapter can answer them."""

    domains: tuple[str, ...]  # in the order of the domains' file
    intents: tuple[str, ...]  # domain by domain, in that file's order
    train: Split
    val: Split
    test: Split
    sha256: str  # of the two files' contents, unpacked


def read(folder: pathlib.Path) -> Clinc:
    """Reads the two files, plain or gzipped.

    Args:
      folder: holds one of `PROMPT_FILES` and one of `DOMAIN_FILES`, `.gz` or not.

    Returns:
      The data set.

    Raises:
      ValueError: for files that are missing or are not CLINC150's, in one line.
    """
    prompts, prompts_file = _find(folder, PROMPT_FILES)
    domains, domains_file = _find(folder, DOMAIN_FILES)
    tree = _parse(domains, domains_file)
    if not isinstance(tree, dict) or not all(_is_texts(names) for names in tree.values()):
        raise ValueError(f"{str(domains_file)!r} must be an object {{domain: [intent, ...]}}.")
    needed = {name for pair in PAIRS for name in pair}
    if len(tree) != NUM_DOMAINS or not needed <= set(tree):
        raise ValueError(
            f"{str(domains_file)!r} must name CLINC150's {NUM_DOMAINS} domains, "
            f"{', '.join(sorted(needed))} among them; got {len(tree)}: {', '.join(tree)}."
        )
    owner = {intent: name for name, intents in tree.items() for intent in intents}
    if len(owner) != sum(map(len, tree.values())) or not all(tree.values()):
        raise ValueError(
            f"{str(domains_file)!r}: every domain must have intents, and every intent one domain."
        )
    rows = _parse(prompts, prompts_file)
    splits = {name: _split(rows, name, owner, tuple(tree), prompts_file) for name in SPLITS}
    sha256 = hashlib.sha256(prompts + domains).hexdigest()
    return Clinc(tuple(tree), tuple(owner), sha256=sha256, **splits)


def first(data: Clinc, per_intent: int) -> Clinc:
    """The data set with the first `per_intent` prompts of every intent of every split."""

    def cut(split: Split) -> Split:
        seen = np.zeros(len(data.intents), int)
        kept = []
        for i, intent in enumerate(split.intent):
            if seen[intent] < per_intent:
                kept.append(i)
            seen[intent] += 1
        return Split(tuple(split.prompts[i] for i in kept), split.intent[kept], split.domain[kept])

    return data._replace(train=cut(data.train), val=cut(data.val), test=cut(data.test))


def _find(folder: pathlib.Path, names: tuple[str, ...]) -> tuple[bytes, pathlib.Path]:
    """Contents and path of the first file that is there."""
    wanted = [name + end for name in names for end in ("", ".gz")]
    for name in wanted:
        file = folder / name
        if not file.is_file():
            continue
        data = file.read_bytes()
        if file.suffix != ".gz":
            return data, file
        try:
            return gzip.decompress(data), file
        except (OSError, EOFError, zlib.error) as error:
            raise ValueError(f"{str(file)!r} must be a gzip file, got {error}.") from None
    raise ValueError(
        f"--clinc must be a folder that holds one of {', '.join(wanted)} (the folder data/ of "
        f"github.com/clinc/oos-eval), got {str(folder)!r}."
    )


def _parse(data: bytes, file: pathlib.Path) -> Any:
    try:
        return json.loads(data)
    except ValueError as error:  # JSON's and Unicode's
        raise ValueError(f"{str(file)!r} must be JSON, got {error}.") from None


def _is_texts(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(one, str) for one in value)


def _split(
    rows: Any, name: str, owner: dict[str, str], domains: tuple[str, ...], file: pathlib.Path
) -> Split:
    """One split; every intent must occur in it, or nothing could be said of it."""
    found = rows.get(name) if isinstance(rows, dict) else None
    if not isinstance(found, list) or not all(_is_texts(row) and len(row) == 2 for row in found):
        raise ValueError(f"{str(file)!r} must hold {name!r}, a list of [prompt, intent].")
    intents = {intent: number for number, intent in enumerate(owner)}
    unknown = sorted({intent for _, intent in found} - set(intents))
    missing = sorted(set(intents) - {intent for _, intent in found})
    if unknown or missing:
        raise ValueError(
            f"{str(file)!r}: {name!r} must have prompts of the {len(intents)} intents that the "
            f"domains name and of no other; unknown {unknown[:3]}, missing {missing[:3]}."
        )
    place = {domain: number for number, domain in enumerate(domains)}
    return Split(
        tuple(prompt for prompt, _ in found),
        np.array([intents[intent] for _, intent in found], np.int32),
        np.array([place[owner[intent]] for _, intent in found], np.int32),
    )
