"""Tasks: ranges, golden values, and streams that are pure functions of (seed, purpose, index)."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from dataset import PURPOSES, SineLineTaskGenerator, SinusoidalTaskGenerator, Task, TaskDataset, stream

MANY = 20_000
LEVELS = np.linspace(0.1, 0.9, 9)


def arrays(task: Task) -> list[np.ndarray]:
    return [*task.support, *task.query]


def visited(dataset: TaskDataset, count: int) -> np.ndarray:
    """Indices of the first `count` functions that a dataset visits, recognised by what they are drawn from."""
    recorded: list[np.ndarray] = []
    tasks = dataset.generator.tasks

    def record(params: np.ndarray, *args: Any) -> Task:
        recorded.append(params.reshape(-1, params.shape[-1]))
        return tasks(params, *args)

    dataset.generator.tasks = record  # type: ignore[method-assign]
    for number in range(-(-count // (dataset.block * dataset.meta_batch))):
        dataset.draw_block(number)
    places = {params.tobytes(): place for place, params in enumerate(dataset.params)}
    return np.array([places[params.tobytes()] for params in np.concatenate(recorded)[:count]])


def assert_uniform(values: np.ndarray, low: float, high: float, tolerance: float) -> None:
    """They stay within the range, nearly reach its ends, and are equally frequent in it."""
    assert np.float32(low) <= values.min() and values.max() <= np.float32(high)
    assert_allclose([values.min(), values.max()], [low, high], atol=(high - low) / 1000)
    assert_allclose(np.quantile(values, LEVELS), low + LEVELS * (high - low), atol=tolerance * (high - low))


def test_parameters_and_inputs_are_uniform_in_the_papers_ranges_and_in_others(sinusoids: SinusoidalTaskGenerator) -> None:
    functions = sinusoids.draw(MANY, stream(0, "functions"))
    assert_uniform(functions[:, 0], 0.1, 5.0, 0.02)
    assert_uniform(functions[:, 1], 0.0, np.pi, 0.02)
    assert_uniform(sinusoids.points(np.array([1.0, 0.0, 1.0], np.float32), MANY, stream(0, "points")).x, -5, 5, 0.02)
    generator = SinusoidalTaskGenerator(1, (2.0, 3.0), 0.0, (1.0, 1.5), (-1.0, -0.5))
    params = generator.draw(MANY, stream(0, "functions"))
    assert_uniform(params[:, 0], 1.0, 1.5, 0.02)
    assert_uniform(params[:, 1], -1.0, -0.5, 0.02)
    assert_uniform(generator.points(params, 1, stream(0, "points")).x, 2.0, 3.0, 0.02)


def test_published_errors_are_of_the_tasks_they_were_measured_on_and_not_of_a_subclass() -> None:
    assert SinusoidalTaskGenerator().published and not SinusoidalTaskGenerator(noise_std=0.1).published
    assert not type("Faster", (SinusoidalTaskGenerator,), {})().published


def test_the_first_tasks_of_seed_0_are_the_golden_ones(sinusoids: SinusoidalTaskGenerator) -> None:
    dataset = TaskDataset(sinusoids, 100, 4, 3, 2, seed=0)
    golden = [[4.3890085, 0.64894265, 1.0], [4.1227403, 2.3162344, 1.0], [3.2194345, 0.9675836, 1.0]]
    assert_allclose(dataset.params[:3], golden, rtol=1e-6)
    support, query = dataset.draw_block(0)
    assert_allclose(support.x[0, :2, :, 0], [[4.5371113, -1.5810227, 0.4416275], [1.6973753, 3.7116356, -3.6308908]], rtol=1e-6)
    assert_allclose(support.y[0, :2, :, 0], [[0.866256, 0.284677, -3.329915], [-0.424350, 1.879709, 1.288979]], atol=1e-5)
    assert_allclose(query.x[0, :2, :, 0], [[-2.245512, 3.3511715], [-4.9684243, 3.7310925]], rtol=1e-6)
    assert_allclose(query.y[0, :2, :, 0], [[2.421394, 3.539563], [-1.095345, 1.871121]], atol=1e-5)


def test_the_first_test_tasks_are_the_golden_ones_whatever_was_trained(sinusoids: SinusoidalTaskGenerator) -> None:
    TaskDataset(sinusoids, 10, 3, 2, 2, seed=17).draw_block(0)
    params, (support, query), _ = sinusoids.held_out("test", 3, 2, 2)
    assert_allclose(params, [[0.9968864, 1.4573052, 1], [1.5419222, 2.1472723, 1], [3.1779912, 2.4766068, 1]], rtol=1e-6)
    assert_allclose(support.x[0, :, 0], [-2.446446, 1.1324873], rtol=1e-6)
    assert_allclose(support.y[0, :, 0], [0.688334, -0.318143], atol=1e-5)
    assert_allclose(query.x[0, :, 0], [-1.074419, 3.074829], rtol=1e-6)
    assert_allclose(query.y[0, :, 0], [-0.570976, 0.995798], atol=1e-5)


@pytest.mark.parametrize("dim", [1, 3])
def test_targets_are_amplitude_times_the_sine_of_the_projected_input_minus_phase(dim: int) -> None:
    generator = SinusoidalTaskGenerator(dim)
    params = generator.draw(7, stream(1, "functions"))
    x, y = generator.points(params, 11, stream(1, "points"))
    for (amplitude, phase, *direction), inputs, found in zip(params.astype(float), x.astype(float), y[..., 0], strict=True):
        assert_allclose(found, amplitude * np.sin(inputs @ direction - phase), atol=1e-5)


def test_directions_have_length_1_and_favour_none() -> None:
    directions = SinusoidalTaskGenerator(3).draw(MANY, stream(0, "functions"))[:, 2:]
    assert_allclose(np.linalg.norm(directions, axis=1), 1, rtol=1e-6)
    assert_allclose(directions.mean(0), 0, atol=0.02)
    assert_array_equal(SinusoidalTaskGenerator(1).draw(1000, stream(0, "functions"))[:, 2:], 1)


@pytest.mark.parametrize(("dim", "noise"), [(1, 0.0), (3, 0.3)])
def test_a_batch_of_tasks_has_the_documented_shapes_in_float32(dim: int, noise: float) -> None:
    generator = SinusoidalTaskGenerator(dim, noise_std=noise)
    task = generator.tasks(generator.draw(6, stream(0, "functions")).reshape(2, 3, -1), 4, 5, stream(0, "points"))
    assert [array.shape for array in arrays(task)] == [(2, 3, 4, dim), (2, 3, 4, 1), (2, 3, 5, dim), (2, 3, 5, 1)]
    assert {array.dtype for array in arrays(task)} == {np.dtype(np.float32)}


@pytest.mark.parametrize("generator", [SinusoidalTaskGenerator(noise_std=0.3), SineLineTaskGenerator()])
def test_noise_has_mean_zero_and_the_standard_deviation_asked_for(
    generator: SinusoidalTaskGenerator | SineLineTaskGenerator,
) -> None:
    params = generator.draw(100, stream(0, "functions"))
    x, y = generator.points(params, 1000, stream(0, "points"))
    noise = y - generator.curve(params, x)
    assert noise.std() == pytest.approx(0.3, rel=0.01) and noise.mean() == pytest.approx(0, abs=0.005)


def test_noise_moves_no_input_and_lies_on_support_points_alone(sinusoids: SinusoidalTaskGenerator) -> None:
    noisy = SinusoidalTaskGenerator(noise_std=0.3)
    params = sinusoids.draw(5, stream(0, "functions"))
    drawn = [generator.points(params, 6, stream(0, "points")).x for generator in (noisy, sinusoids)]
    assert_array_equal(*drawn)
    params, (support, query), _ = noisy.held_out("test", 50, 20, 6)
    assert (support.y - noisy.curve(params, support.x)).std() == pytest.approx(0.3, rel=0.1)
    assert_array_equal(query.y, noisy.curve(params, query.x))


def test_a_fixed_predictor_scores_the_floor_derived_on_paper(sinusoids: SinusoidalTaskGenerator) -> None:
    x, y = sinusoids.points(sinusoids.draw(MANY, stream(0, "functions")), 20, stream(0, "points"))
    for prediction, floor in ((np.zeros_like(x), 4.252), (-1.623 * np.cos(x), 3.006)):  # zero, the best single function
        errors = np.square(prediction - y).mean((1, 2))
        assert errors.mean() == pytest.approx(floor, abs=4 * errors.std() / np.sqrt(MANY))  # four standard errors


def test_a_stream_repeats_for_the_same_seed_purpose_and_index_and_no_two_begin_alike() -> None:
    assert_array_equal(stream(3, "points", 7).random(100), stream(3, "points", 7).random(100))
    firsts = [stream(*key).random() for key in itertools.product((0, 1, 2**63), PURPOSES, (0, 1, 5, 1 << 32))]
    assert len(set(firsts)) == len(firsts)


def test_the_purposes_keep_their_places_and_others_are_refused() -> None:
    published = ("weights", "functions", "order", "points", "noise", "validation", "test", "figures", "samples")
    assert PURPOSES[: len(published)] == published
    with pytest.raises(ValueError, match="not in tuple"):
        stream(0, "testing")


def test_numpys_global_state_is_neither_read_nor_changed(sinusoids: SinusoidalTaskGenerator) -> None:
    def drawn(state: int) -> tuple[np.ndarray, np.ndarray]:
        np.random.seed(state)  # noqa: NPY002
        block = TaskDataset(sinusoids, 10, 2, 3, 3, seed=0).draw_block(0)
        return block.support.y, np.random.random(3)  # noqa: NPY002

    (first, after), (second, other) = drawn(1), drawn(2)
    assert_array_equal(first, second)
    assert_array_equal([after, other], [np.random.RandomState(state).random(3) for state in (1, 2)])


@pytest.mark.parametrize(("num_tasks", "meta_batch"), [(12, 4), (10, 4), (3, 5), (1, 4), (5, 12)])
def test_each_function_is_visited_exactly_once_an_epoch_in_a_fresh_order(
    sinusoids: SinusoidalTaskGenerator, num_tasks: int, meta_batch: int
) -> None:
    epochs = visited(TaskDataset(sinusoids, num_tasks, meta_batch, 2, 2, seed=0), 20 * num_tasks).reshape(20, num_tasks)
    assert_array_equal(np.sort(epochs, axis=1), np.tile(np.arange(num_tasks), (20, 1)))
    assert len({tuple(epoch) for epoch in epochs}) == 20 or num_tasks < 10


def test_the_points_of_a_block_lie_on_the_functions_it_visits(sinusoids: SinusoidalTaskGenerator) -> None:
    dataset = TaskDataset(sinusoids, 6, 4, 3, 2, seed=0)
    order = visited(TaskDataset(SinusoidalTaskGenerator(), 6, 4, 3, 2, seed=0), dataset.block * 4)
    params = dataset.params[order].reshape(dataset.block, 4, -1)
    for points in dataset.draw_block(0):
        assert_allclose(points.y, sinusoids.curve(params, points.x), atol=1e-6)


def test_support_query_visits_and_blocks_have_points_of_their_own(sinusoids: SinusoidalTaskGenerator) -> None:
    dataset = TaskDataset(sinusoids, 1, 1, 5, 5, seed=0)
    (support, query), other = dataset.draw_block(0), dataset.draw_block(1)
    assert not np.isin(query.x, support.x).any() and not np.isin(other.support.x, support.x).all()
    assert len({visit.tobytes() for visit in support.x}) == len(support.x)


def test_a_block_does_not_depend_on_what_was_drawn_before(sinusoids: SinusoidalTaskGenerator) -> None:
    assert TaskDataset(sinusoids, 10, 10_000, 10, 10, seed=0).block == 1  # one of large meta-batches is small
    used, fresh = (TaskDataset(sinusoids, 10, 3, 2, 2, seed=0) for _ in range(2))
    for number in (0, 7, 3):
        used.draw_block(number)
    assert all(map(np.array_equal, arrays(used.draw_block(5)), arrays(fresh.draw_block(5))))


def test_numbers_of_shots_share_held_out_functions_and_query_points_alone(sinusoids: SinusoidalTaskGenerator) -> None:
    (functions, few, _), (same, many, _) = (sinusoids.held_out("test", 4, shots, 6) for shots in (5, 20))
    assert_array_equal(functions, same)
    assert_array_equal(few.query, many.query)
    assert not np.isin(few.support.x, many.support.x).any()


def test_training_validation_and_test_functions_are_different(sinusoids: SinusoidalTaskGenerator) -> None:
    validated, tested = (sinusoids.held_out(purpose, 1000, 5, 1)[0][:, 0] for purpose in ("validation", "test"))
    for other in [validated, *(TaskDataset(sinusoids, 1000, 25, 10, 10, seed=seed).params[:, 0] for seed in range(3))]:
        assert np.isin(tested, other).mean() < 0.01  # float32 amplitudes may coincide once in a while
    one, two = (TaskDataset(sinusoids, 10, 3, 2, 2, seed=seed).params[:, :2] for seed in (0, 1))
    assert not np.isin(one, two).any()


def test_half_of_the_mixture_are_lines_and_its_ranges_are_those_asked_for() -> None:
    params = SineLineTaskGenerator().draw(MANY, stream(0, "functions"))
    assert set(np.unique(params[:, 0])) == {0, 1} and abs(params[:, 0].mean() - 0.5) < 0.03
    for column, bounds in zip(params.T[1:5], [(0.1, 5.0), (0.0, np.pi), (-3.0, 3.0), (-3.0, 3.0)], strict=True):
        assert_uniform(column, *bounds, 0.02)


@pytest.mark.parametrize("dim", [1, 3])
def test_curves_of_the_mixture_are_sinusoids_or_lines_along_a_direction(dim: int) -> None:
    generator = SineLineTaskGenerator(input_dim=dim)
    params = generator.draw(50, stream(1, "functions"))
    x = stream(1, "points").uniform(-5, 5, (50, 7, dim))
    values = generator.curve(params, x)[..., 0]
    for (family, amplitude, phase, slope, intercept, *direction), inputs, found in zip(params, x, values, strict=True):
        along = inputs @ direction
        expected = slope * along + intercept if family else amplitude * np.sin(along - phase)
        assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
