"""The ridge model of each adapter and the estimates drawn from it (section 3)."""

from dataclasses import dataclass

import numpy as np

from .data import Bools, Floats, Ints, ReferenceSettings


@dataclass
class RidgeModel:
    """Ridge statistics of all adapters; changed in place by `update`."""

    precision: Floats  # [N, d, d], ridge * I + sum x x^T
    response: Floats  # [N, d], sum r x
    theta_hat: Floats  # [N, d]
    pulls: Ints  # [N]
    ridge: float
    pooled_prior: bool  # whether estimates shrink to a regression over all rewards, not to 0


def new_model(num_adapters: int, context_dim: int, settings: ReferenceSettings) -> RidgeModel:
    """The model before any request."""
    ridge = settings.ridge
    return RidgeModel(
        precision=np.stack([ridge * np.eye(context_dim) for _ in range(num_adapters)]),
        response=np.zeros((num_adapters, context_dim)),
        theta_hat=np.zeros((num_adapters, context_dim)),
        pulls=np.zeros(num_adapters, np.int64),
        ridge=ridge,
        pooled_prior=settings.pooled_prior,
    )


def update(model: RidgeModel, context: Floats, action: int, reward: float) -> None:
    """Adds one observation of the chosen adapter, in place.

    Args:
      model: the statistics.
      context: `[d]`.
      action: the chosen adapter.
      reward: its observed reward.
    """
    model.precision[action] += np.outer(context, context)
    model.response[action] += reward * context
    model.theta_hat[action] = np.linalg.solve(model.precision[action], model.response[action])
    model.pulls[action] += 1


def means(model: RidgeModel, contexts: Floats) -> Floats:
    """Estimated utilities.

    Args:
      model: the statistics.
      contexts: `[M, d]`.

    Returns:
      `[M, N]`.
    """
    return np.stack([contexts @ theta for theta in thetas(model)], axis=1)


def thetas(model: RidgeModel) -> Floats:
    """`[N, d]` estimates: ridge regressions towards 0, or towards the pooled estimate."""
    if not model.pooled_prior:
        return model.theta_hat
    # What every precision holds at first is ridge * I; an adapter never chosen has just that.
    num_adapters, context_dim = model.theta_hat.shape
    ridge = model.ridge
    gram = sum(precision - ridge * np.eye(context_dim) for precision in model.precision)
    pooled = np.linalg.solve(ridge * np.eye(context_dim) + gram, model.response.sum(axis=0))
    found = np.empty((num_adapters, context_dim))
    for adapter in range(num_adapters):
        if model.pulls[adapter] == 0:
            found[adapter] = pooled
        else:
            towards = model.response[adapter] + ridge * pooled
            found[adapter] = np.linalg.solve(model.precision[adapter], towards)
    return found


def widths(model: RidgeModel, contexts: Floats) -> Floats:
    """Confidence widths `sqrt(x^T V_i^-1 x)`.

    Args:
      model: the statistics.
      contexts: `[M, d]`.

    Returns:
      `[M, N]`.
    """
    # One adapter at a time through the same operations: adapters that were
    # never chosen get bitwise equal widths, so ties stay ties.
    columns = []
    for precision in model.precision:
        solved = np.linalg.solve(precision, contexts.T)
        columns.append(np.sqrt(np.sum(contexts.T * solved, axis=0)))
    return np.stack(columns, axis=1)


def confidence_scale(pulls: Ints, context_dim: int, settings: ReferenceSettings) -> Floats:
    """`beta` of every adapter: the constant `alpha`, or the theory's schedule.

    Args:
      pulls: `[N]` times each adapter was chosen.
      context_dim: `d`.
      settings: the constants.

    Returns:
      `[N]`.
    """
    num_adapters = len(pulls)
    if not settings.theory_beta:
        return np.full(num_adapters, settings.alpha)
    growth = (1.0 + pulls / settings.ridge) / (settings.delta / num_adapters)
    noise_part = settings.sigma * np.sqrt(context_dim * np.log(growth))
    return noise_part + np.sqrt(settings.ridge) * settings.theta_bound


@dataclass(frozen=True)
class Estimates:
    """What the model says about one request, before its update."""

    mean: Floats  # [N]
    width: Floats  # [N]
    optimistic: Floats  # [N], mean + beta * width
    value: Floats  # [N], the `q` of the expert controller
    pulls: Ints  # [N], copied: the update must not reach it


def estimate(model: RidgeModel, context: Floats, settings: ReferenceSettings) -> Estimates:
    """Estimates of one request.

    Args:
      model: the statistics before the request.
      context: `[d]`.
      settings: the constants.

    Returns:
      The means, widths and the two optimistic indices.
    """
    mean = means(model, context[None])[0]
    width = widths(model, context[None])[0]
    beta = confidence_scale(model.pulls, len(context), settings)
    value_beta = np.minimum(beta, settings.value_beta_max)
    return Estimates(
        mean=mean,
        width=width,
        optimistic=mean + beta * width,
        value=mean + value_beta * width,
        pulls=model.pulls.copy(),
    )


def optimistic_matrix(model: RidgeModel, contexts: Floats, settings: ReferenceSettings) -> Floats:
    """Optimistic estimates of a sample, as POLAR's replanning uses them.

    Args:
      model: the statistics.
      contexts: `[M, d]`.
      settings: the constants.

    Returns:
      `[M, N]`.
    """
    beta = confidence_scale(model.pulls, contexts.shape[1], settings)
    return means(model, contexts) + beta[None] * widths(model, contexts)


def penalised(score: Floats, paging_cost: Floats, resident: Bools) -> Floats:
    """Scores less the paging cost of adapters that are not resident.

    Args:
      score: `[N]`.
      paging_cost: `[N]`.
      resident: `[N]`.

    Returns:
      `[N]`.
    """
    return np.where(resident, score, score - paging_cost)
