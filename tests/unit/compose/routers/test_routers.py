from __future__ import annotations

import itertools

import numpy as np
import pytest
from sklearn.cluster import KMeans
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis

from lorabank.compose.routers.gaussian import GaussianRouter
from lorabank.compose.routers.kmeans import KMeansRouter
from lorabank.compose.routers.statistics import TaskStatistics, fit_statistics
from lorabank.core.errors import ConfigError, DamagedError

CORNERS = np.array([[10.0, 0, 0], [0, 10, 0], [0, 0, 10], [-10, 0, 0], [0, -10, 0], [0, 0, -10]])


def around(centres: np.ndarray) -> np.ndarray:
    """Four points around each centre, whose mean is the centre exactly."""
    steps = np.array([[0.5, 0, 0], [-0.5, 0, 0], [0, 0.25, 0], [0, -0.25, 0]])
    return (centres[:, None] + steps).reshape(-1, 3)


def random_tasks(sizes: tuple[int, ...] = (40, 40, 40), d: int = 6, seed: int = 0) -> list[np.ndarray]:
    """Overlapping Gaussians with one covariance that is far from round."""
    rng = np.random.default_rng(seed)
    root = rng.normal(size=(d, d))
    return [rng.normal(size=(n, d)) @ root + 2 * rng.normal(size=d) for n in sizes]


def by_rows(array: np.ndarray) -> list[list[float]]:
    return sorted(array.tolist())


class TestStatistics:
    def test_known_clusters_are_found(self) -> None:
        statistics = fit_statistics(around(CORNERS[:5]), clusters=5, seed=0)
        np.testing.assert_allclose(by_rows(statistics.centroids), by_rows(CORNERS[:5]), atol=1e-6)

    def test_mean_and_scatter_by_hand(self) -> None:
        statistics = fit_statistics(np.array([[1.0, 2.0], [3.0, 6.0], [5.0, 4.0]]), clusters=1, seed=0)
        assert statistics.n == 3
        np.testing.assert_array_equal(statistics.mean, [3, 4])
        np.testing.assert_array_equal(statistics.scatter, [[8, 4], [4, 8]])
        np.testing.assert_allclose(statistics.centroids, [[3, 4]])

    @pytest.mark.parametrize(("rows", "distinct"), [([[1.0, 0.0]] * 4, 1), ([[1.0, 0.0], [0.0, 1.0]] * 3, 2)])
    def test_fewer_distinct_rows_than_clusters(self, rows: list[list[float]], distinct: int) -> None:
        statistics = fit_statistics(np.array(rows), clusters=5, seed=0)
        np.testing.assert_allclose(by_rows(statistics.centroids), by_rows(np.unique(rows, axis=0)))
        assert len(statistics.centroids) == distinct

    @pytest.mark.parametrize(("n", "d", "clusters"), [(480, 384, 5), (300, 8, 12), (40, 3, 40), (9, 2, 4)])
    def test_the_centroids_are_scikit_learn_s(self, n: int, d: int, clusters: int) -> None:
        """With its draws, so that statistics of older versions are those that this one makes."""
        rng = np.random.default_rng(n)
        rows = rng.normal(size=(n, d)) + rng.normal(size=(6, d))[rng.integers(0, 6, n)]
        rows = (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)
        for seed in range(3):
            found = fit_statistics(rows, clusters, seed).centroids
            theirs = KMeans(clusters, n_init=10, random_state=seed).fit(rows.astype(np.float64)).cluster_centers_
            np.testing.assert_allclose(found, theirs, rtol=0, atol=1e-7)

    def test_rows_that_rounding_alone_tells_apart(self) -> None:
        """Fewer clusters are left than asked for; every centroid is one of the three places all the same."""
        places = np.array([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.6, 0.0, 0.8]])
        rows = np.repeat(places, 20, axis=0) + 1e-17 * np.random.default_rng(0).normal(size=(60, 3))
        found = fit_statistics(rows, clusters=5, seed=0).centroids
        np.testing.assert_allclose(np.unique(found.round(6), axis=0), np.unique(places, axis=0), atol=1e-6)

    def test_the_same_seed_gives_the_same_bytes(self) -> None:
        (rows,) = random_tasks((3000,), d=24)  # enough rows for several threads to share
        first = fit_statistics(rows, clusters=7, seed=3).to_bytes()
        assert all(fit_statistics(rows, clusters=7, seed=3).to_bytes() == first for _ in range(3))

    def test_bytes_come_back(self) -> None:
        statistics = fit_statistics(random_tasks()[0], clusters=3, seed=0)
        again = TaskStatistics.from_bytes(statistics.to_bytes())
        assert again.n == 40
        for name in ("centroids", "mean", "scatter"):
            assert getattr(again, name).dtype == np.float32
            np.testing.assert_array_equal(getattr(again, name), getattr(statistics, name))

    def test_other_bytes_are_refused(self) -> None:
        statistics = fit_statistics(random_tasks()[0], clusters=3, seed=0)
        unlike = [
            TaskStatistics(statistics.centroids[:, :4], statistics.mean, statistics.scatter, 40),
            TaskStatistics(statistics.centroids, statistics.mean, statistics.scatter[:4], 40),
            TaskStatistics(statistics.centroids[:0], statistics.mean, statistics.scatter, 40),
            TaskStatistics(statistics.centroids, statistics.mean * np.float32("nan"), statistics.scatter, 40),
            TaskStatistics(statistics.centroids, statistics.mean, statistics.scatter, 0),
        ]
        for data in (b"", b"not safetensors", *(s.to_bytes() for s in unlike)):
            with pytest.raises(DamagedError, match="routing statistics"):
                TaskStatistics.from_bytes(data)

    @pytest.mark.parametrize("features", [np.zeros((0, 3)), np.zeros(3), np.array([[np.nan, 1.0]])])
    def test_features_that_are_none(self, features: np.ndarray) -> None:
        with pytest.raises(ValueError, match="at least one row, all finite"):
            fit_statistics(features, clusters=2, seed=0)


class TestKMeans:
    def test_known_clusters_are_routed(self) -> None:
        tasks = [CORNERS[[0, 3]], CORNERS[[1, 4]], CORNERS[[2, 5]]]  # each task on two opposite sides
        router = KMeansRouter([fit_statistics(around(task), clusters=2, seed=0) for task in tasks])
        assert router.rank(CORNERS + 0.3).task.tolist() == [0, 1, 2, 0, 1, 2]

    def test_scores_against_plain_loops(self) -> None:
        # Tasks with different numbers of centroids.
        statistics = [
            fit_statistics(rows, clusters=k, seed=0) for k, rows in zip((1, 4, 2), random_tasks(), strict=True)
        ]
        queries = random_tasks(seed=1)[0]
        scores = KMeansRouter(statistics).scores(queries)
        assert scores.shape == (40, 3)
        for row, task in itertools.product(range(40), range(3)):
            distances = [sum((float(x) - float(c)) ** 2 for x, c in zip(queries[row], centroid, strict=True))
                         for centroid in statistics[task].centroids]  # fmt: skip
            assert scores[row, task] == pytest.approx(-min(distances), rel=1e-9, abs=1e-9)


class TestGaussian:
    def test_a_worked_example(self) -> None:
        # Two tasks on a line, variance 1 within: S = 1, so the score is x m - m^2 / 2.
        tasks = [np.array([[-1.0], [1.0]]), np.array([[3.0], [5.0]])]
        router = GaussianRouter([fit_statistics(rows, 1, 0) for rows in tasks], shrinkage=0.0)
        np.testing.assert_allclose(router.scores(np.array([[3.0], [1.9]])), [[0, 4], [0, -0.4]], atol=1e-12)
        assert router.rank(np.array([[3.0], [1.9]])).task.tolist() == [1, 0]

    @pytest.mark.parametrize("shrinkage", [0.0, 0.1, 0.7, 1.0])
    def test_the_discriminant_of_scikit_learn(self, shrinkage: float) -> None:
        tasks = random_tasks()
        reference = LinearDiscriminantAnalysis(solver="lsqr", shrinkage=shrinkage)
        reference.fit(np.concatenate(tasks), np.repeat([0, 1, 2], 40))
        queries = np.concatenate(random_tasks(seed=1))
        router = GaussianRouter([fit_statistics(rows, 2, 0) for rows in tasks], shrinkage)
        # scikit-learn adds log priors, which are equal here; the statistics are kept in float32.
        expected = reference.decision_function(queries) - np.log(1 / 3)
        np.testing.assert_allclose(router.scores(queries), expected, rtol=1e-4, atol=1e-4)
        assert router.rank(queries).task.tolist() == reference.predict(queries).tolist()

    def test_the_size_of_a_task_counts_for_the_covariance_only(self) -> None:
        tasks, shrinkage = random_tasks((10, 100, 30)), 0.25
        means = [rows.mean(0) for rows in tasks]
        pooled = sum((x - m)[:, None] * (x - m) for rows, m in zip(tasks, means, strict=True) for x in rows) / 140
        shrunk = (1 - shrinkage) * pooled + shrinkage * np.eye(6) * sum(pooled[i, i] for i in range(6)) / 6
        inverse = np.linalg.inv(shrunk)
        queries = random_tasks(seed=2)[0]
        expected = [[x @ inverse @ m - m @ inverse @ m / 2 for m in means] for x in queries]
        router = GaussianRouter([fit_statistics(rows, 1, 0) for rows in tasks], shrinkage)
        np.testing.assert_allclose(router.scores(queries), expected, rtol=1e-4, atol=1e-4)

    def test_a_direction_without_variance_within_tasks(self) -> None:
        # More dimensions than rows: without shrinkage the covariance has no inverse.
        tasks = random_tasks((3, 3), d=8)
        for shrinkage in (0.0, 0.1):
            router = GaussianRouter([fit_statistics(rows, 1, 0) for rows in tasks], shrinkage)
            assert np.isfinite(router.scores(np.concatenate(tasks))).all()
        assert router.rank(np.concatenate(tasks)).task.tolist() == [0, 0, 0, 1, 1, 1]

    def test_a_feature_that_never_varies(self) -> None:
        tasks = [np.hstack([rows, np.full((40, 1), 0.5)]) for rows in random_tasks()]
        router = GaussianRouter([fit_statistics(rows, 1, 0) for rows in tasks], 0.0)
        without = GaussianRouter([fit_statistics(rows[:, :-1], 1, 0) for rows in tasks], 0.0)
        np.testing.assert_allclose(router.scores(tasks[1]), without.scores(tasks[1][:, :-1]), rtol=1e-4, atol=1e-4)

    def test_tasks_of_one_row_each_go_to_the_nearest_mean(self) -> None:
        router = GaussianRouter([fit_statistics(row[None], 1, 0) for row in CORNERS[:3]], 0.1)
        assert router.rank(CORNERS[:3] * 0.4).task.tolist() == [0, 1, 2]

    @pytest.mark.parametrize("own", [0.1, 0.5, 1.0])
    def test_own_covariances_are_the_gaussian_densities(self, own: float) -> None:
        """Against scipy's multivariate normal, with the covariance written out entry by entry."""
        from scipy.stats import multivariate_normal

        tasks, shrinkage = random_tasks((40, 90, 60)), 0.2
        centred = [rows - rows.mean(0) for rows in tasks]
        pooled = sum(x.T @ x for x in centred) / 190
        queries = np.concatenate(tasks)[::7]
        expected = []
        for rows, x in zip(tasks, centred, strict=True):
            mixed = (1 - own) * pooled + own * (x.T @ x) / len(rows)
            shrunk = (1 - shrinkage) * mixed + shrinkage * np.eye(6) * np.mean(np.diag(mixed))
            expected.append(multivariate_normal(rows.mean(0), shrunk).logpdf(queries) + 3 * np.log(2 * np.pi))
        router = GaussianRouter([fit_statistics(rows, 1, 0) for rows in tasks], shrinkage, own)
        np.testing.assert_allclose(router.scores(queries), np.stack(expected, 1), rtol=1e-4, atol=1e-4)

    def test_a_wide_task_keeps_its_outliers(self) -> None:
        """Equal means but for a little: the far rows belong to the task that varies more."""
        rng = np.random.default_rng(0)
        narrow, wide = rng.normal(0, 0.1, (200, 4)), rng.normal(0, 1.0, (200, 4)) + 0.05
        statistics = [fit_statistics(rows, 1, 0) for rows in (narrow, wide)]
        far = np.array([[2.0, -2.0, 2.0, -2.0], [-2.0, -2.0, -2.0, -2.0]])
        assert GaussianRouter(statistics, 0.1, 0.5).rank(far).task.tolist() == [1, 1]
        assert GaussianRouter(statistics, 0.1, 0.0).rank(far).task.tolist() != [1, 1]

    def test_a_covariance_without_an_inverse(self) -> None:
        rows = np.array([[1.0, 0.0], [2.0, 0.0]])
        with pytest.raises(ConfigError, match="no inverse"):
            GaussianRouter([fit_statistics(rows, 1, 0)], 0.0, 0.5)

    @pytest.mark.parametrize("shrinkage", [-0.1, 1.1, float("nan")])
    def test_shrinkage_out_of_bounds(self, shrinkage: float) -> None:
        with pytest.raises(ConfigError, match="shrinkage"):
            GaussianRouter([fit_statistics(np.eye(3), 1, 0)], shrinkage)
