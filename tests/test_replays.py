"""Replays: what `make_replay` accepts, changes and refuses; the cross-fitted benchmark."""

import numpy as np
import pytest
from replay_data import made

from polar_jax import replays

X, U = np.array([[3.0, 4.0], [1.0, 0.0]]), np.array([[0.5, 1.0, 0.0], [0.0, 0.25, 1.0]])


def test_contexts_are_divided_by_the_largest_norm_and_it_is_recorded():
    replay = replays.make_replay(X, U)
    np.testing.assert_allclose(replay.contexts, X / 5, rtol=1e-6)
    assert replay.largest_norm == pytest.approx(5.0)
    assert replay.contexts.dtype == replay.utilities.dtype == np.float32
    np.testing.assert_array_equal(replay.order, [0, 1])
    assert replay.adapters == ("adapter-00", "adapter-01", "adapter-02")
    assert replay.domain_names == ("all",)
    assert not replay.binary


@pytest.mark.parametrize("scale", [1e-30, 1e30])
def test_contexts_of_any_size_are_normed_without_overflow(scale):
    replay = replays.make_replay(X * scale, U)
    np.testing.assert_allclose(replay.contexts, X / 5, rtol=1e-6)


def test_domains_are_numbered_in_the_order_of_their_labels():
    replay = replays.make_replay(X, U, domains=["z", "a"])
    assert replay.domain_names == ("a", "z")
    np.testing.assert_array_equal(replay.domains, [1, 0])


def test_missing_utilities_mean_what_the_user_says():
    gaps = U.copy()
    gaps[0, 1] = np.nan
    for missing, value in (("adapter-mean", 0.25), (-2.0, -2.0), (0, 0.0)):
        replay = replays.make_replay(X, gaps, missing=missing)
        assert replay.utilities[0, 1] == np.float32(value)
        assert replay.missing == 1
    with pytest.raises(ValueError, match=r"1 missing values, the first at \[0, 1\]; say what"):
        replays.make_replay(X, gaps)
    gaps[1, 1] = np.nan
    with pytest.raises(ValueError, match="adapter 1 are all missing"):
        replays.make_replay(X, gaps, missing="adapter-mean")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"contexts": X[:1]}, "a row per request, got 1 and 2 rows"),
        ({"contexts": X[0]}, r"contexts must be numbers in a table.*shape \(2,\)"),
        ({"contexts": X[:, :0]}, r"contexts must be numbers in a table.*shape \(2, 0\)"),
        ({"contexts": [[3.0, np.inf], [1.0, 0.0]]}, r"contexts\[0, 1\] must be finite, got inf"),
        ({"contexts": X * 0}, "must not all be 0"),
        ({"contexts": X.astype(str)}, "contexts must be numbers"),
        ({"utilities": U * 1j}, "utilities must be numbers"),
        ({"utilities": U * 1e9}, r"utilities\[0, 1\] must be in .* got 1e\+09"),
        ({"utilities": np.where(U == 1, np.inf, U)}, "must be in .* got inf"),
        ({"utilities": np.where(U == 1, np.nan, U), "missing": "mean"}, "missing must be"),
        ({"utilities": np.where(U == 1, np.nan, U), "missing": float("nan")}, "got nan"),
        ({"domains": [1, 2, 3]}, r"domains must be 2 .* shape \(3,\)"),
        ({"domains": [0.5, 1.5]}, "domains must be 2 whole numbers"),
        ({"adapters": ["a", "b"]}, "adapters must be 3 names, .* got 2"),
        ({"adapters": ["a", "b", "a"]}, "adapters"),
        ({"adapters": ["a", "b", "\n"]}, "printable"),
        ({"order": [0, 2]}, r"order\[1\] must be a request in \[0, 2\), got 2"),
        ({"order": [-1]}, r"order\[0\] must be"),
        ({"order": []}, "one or more whole numbers"),
        ({"order": [0.0]}, "one or more whole numbers"),
    ],
)
def test_what_cannot_be_used_is_refused_with_what_was_received(change, message):
    arguments = {"contexts": X, "utilities": U, **change}
    with pytest.raises(ValueError, match=message) as caught:
        replays.make_replay(**arguments)
    assert "\n" not in str(caught.value)


def test_the_digest_tells_every_part_apart():
    base = {"contexts": X, "utilities": U, "domains": [0, 1], "adapters": ["a", "b", "c"]}
    changes = [
        {},
        {"contexts": X[::-1]},
        {"utilities": U * 0.5},
        {"domains": [1, 0]},
        {"domains": [0, 2]},
        {"adapters": ["a", "b", "d"]},
        {"order": [1, 0]},
    ]
    digests = {replays.make_replay(**{**base, **change}).digest for change in changes}
    assert len(digests) == len(changes)
    assert replays.make_replay(**base).digest in digests


def test_cross_fitted_predictions_never_see_the_fifth_that_they_predict():
    replay = made(num_requests=47)
    x, u = replay.contexts.astype(np.float64), replay.utilities.astype(np.float64)
    predicted = replays.cross_fitted(x, u, ridge=0.7)
    fold = np.random.default_rng(0).permutation(47) % 5
    for i in range(47):
        others = fold != fold[i]
        gram = x[others].T @ x[others] + 0.7 * np.eye(x.shape[1])
        expected = x[i] @ np.linalg.solve(gram, x[others].T @ u[others])
        np.testing.assert_allclose(predicted[i], expected, rtol=1e-5)
    # Another outcome changes the predictions of the other fifths, never of its own.
    changed = u.copy()
    changed[3] += 10.0
    moved = np.any(replays.cross_fitted(x, changed, ridge=0.7) != predicted, axis=1)
    assert not moved[fold == fold[3]].any()
    assert moved[fold != fold[3]].all()
