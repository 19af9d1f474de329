"""The programs that an experiment needs, in words, without compiling any."""

from typing import Any

from polar_jax import chunks, draws, lane_calls, paging, programs
from polar_jax.lane_calls import Experiment


def descriptions(experiment: Experiment, platform: str) -> list[tuple[Any, str]]:
    """Every program that an experiment needs: what makes it another one, and its name.

    Args:
      experiment: what would run.
      platform: "cpu", "gpu" or "tpu".

    Returns:
      `(key, text)` pairs; equal keys are one program, whoever asks for it.
    """
    env, shape = experiment.environment, experiment.compiled_shape
    table = experiment.costs.table
    samples = 0 if table is None else paging.draw_arrays(table)[0].shape[1]
    widths = [one.members.shape for one in lane_calls.subset_tables(experiment.problem, shape)]
    sizes = f"{shape.num_adapters} adapters, {shape.context_dim} features"
    sized = experiment.problem.differing is not None
    if sized:
        sizes += ", of different size"
    chunk = programs.chunk_of_full_tiles(experiment, platform)
    short = "" if chunk == chunks.MAX_ROUNDS else f", {chunk} rounds a call"
    stream = f"{env.name} with {env.num_clusters} clusters"
    if env.num_segments > 1:
        stream += f", {env.num_segments} segments"
    needs = programs.needs_of(experiment)
    drawn = "".join(f", {name}" for name, read in needs._asdict().items() if read)
    found: list[tuple[Any, str]] = [
        (("setup", env, shape, samples, sized), f"setup {stream}: {sizes}"),
        (("draw", env, shape, needs, chunk), f"draw {stream}: {sizes}{drawn}{short}"),
        (("pick", shape, chunk), f"pick: {sizes}{short}"),
        (("oracle", shape, samples, widths[0], chunk, sized), f"oracle: {sizes}{short}"),
    ]
    rewards = ", rewards of 0 and 1" if env.binary_reward else ""
    for policy in experiment.policies:
        name = policy.name.partition("#")[0]
        if policy.rule.window != draws.RESERVOIR_SLOTS:
            name += f" (window {policy.rule.window:,})"
        found += [
            (("start", policy.rule, shape, samples, sized), f"start {name}: {sizes}"),
            (
                (
                    "advance",
                    policy.rule,
                    env.binary_reward,
                    shape,
                    samples,
                    widths[1],
                    chunk,
                    sized,
                ),
                f"advance {name}: {sizes}{rewards}{short}",
            ),
        ]
    return found
