"""Sweep files: what each says, and what is refused."""

import math

import pytest

from shards.common.command import InputError
from slurm import sweep_file


def check(method="grid", parameters=None, **head):
    return sweep_file.check({"method": method, "parameters": parameters, **head}, "sweep")


def test_grid_is_every_combination_in_order():
    search = check(parameters={"model.name": {"values": ["redcnn", "unet"]}, "train.seed": {"values": [0, 1]}})
    assert sweep_file.combinations(search) == [
        {"model.name": "redcnn", "train.seed": 0},
        {"model.name": "redcnn", "train.seed": 1},
        {"model.name": "unet", "train.seed": 0},
        {"model.name": "unet", "train.seed": 1},
    ]
    assert search.swept == ["model.name", "train.seed"]


def test_single_values_belong_to_every_run_and_are_not_swept():
    search = check(parameters={"config": {"value": "base.yaml"}, "train.seed": {"values": [3]}})
    assert sweep_file.combinations(search) == [{"config": "base.yaml", "train.seed": 3}]
    assert search.swept == ["train.seed"]


def test_run_cap_takes_the_first_runs_of_a_grid():
    search = check(parameters={"train.seed": {"values": [0, 1, 2]}}, run_cap=2)
    assert sweep_file.combinations(search) == [{"train.seed": 0}, {"train.seed": 1}]


def test_more_random_runs_do_not_change_the_first_ones():
    parameters = {"optim.lr": {"min": 0.0, "max": 1.0}, "model.name": {"values": ["redcnn", "unet"]}}
    few = sweep_file.combinations(check("random", parameters, run_cap=5))
    many = sweep_file.combinations(check("random", parameters, run_cap=50))
    assert many[:5] == few
    assert len({run["optim.lr"] for run in many}) == 50
    assert {run["model.name"] for run in many} == {"redcnn", "unet"}


def drawn(n=400, **how):
    return [run["x.y"] for run in sweep_file.combinations(check("random", {"x.y": how}, run_cap=n))]


def test_distributions():
    whole = drawn(min=3, max=6)
    assert set(whole) == {3, 4, 5, 6} and all(type(value) is int for value in whole)
    spread = drawn(min=1.0, max=3.0)
    assert min(spread) >= 1 and max(spread) <= 3 and sum(spread) / 400 == pytest.approx(2, abs=0.1)
    logs = drawn(distribution="log_uniform_values", min=1e-4, max=1e-2)
    assert min(logs) >= 1e-4 and max(logs) <= 1e-2
    assert sum(math.log10(value) for value in logs) / 400 == pytest.approx(-3, abs=0.1)
    exponents = drawn(distribution="log_uniform", min=0, max=1)
    assert min(exponents) >= 1 and max(exponents) <= math.e
    steps = drawn(distribution="q_uniform", min=0, max=1, q=0.25)
    assert set(steps) == {0, 0.25, 0.5, 0.75, 1}
    normal = drawn(distribution="normal", mu=5, sigma=0.1)
    assert sum(normal) / 400 == pytest.approx(5, abs=0.02)
    odds = drawn(values=["a", "b"], probabilities=[0.9, 0.1])
    assert odds.count("a") / 400 == pytest.approx(0.9, abs=0.05)


def test_the_other_distributions_of_wandb():
    inverse = drawn(distribution="inv_log_uniform", min=0, max=1)
    assert min(inverse) >= 1 / math.e and max(inverse) <= 1
    assert sum(math.log(1 / value) for value in inverse) / 400 == pytest.approx(0.5, abs=0.05)
    inverse = drawn(distribution="inv_log_uniform_values", min=1e-4, max=1e-2)
    assert min(inverse) >= 0.99e-4 and max(inverse) <= 1.01e-2
    assert sum(math.log10(value) for value in inverse) / 400 == pytest.approx(-3, abs=0.1)
    beta = drawn(distribution="beta", a=2, b=6)
    assert sum(beta) / 400 == pytest.approx(0.25, abs=0.03) and min(beta) > 0 and max(beta) < 1
    assert sum(drawn(distribution="beta")) / 400 == pytest.approx(0.5, abs=0.05)  # a and b are 1
    assert set(drawn(distribution="q_beta", q=0.5)) == {0, 0.5, 1}
    assert {type(value) for value in drawn(distribution="q_log_normal", sigma=0.5)} == {int}
    assert set(drawn(distribution="constant", value=3)) == {3}
    assert set(drawn(distribution="categorical", values=["a", "b"])) == {"a", "b"}
    odds = drawn(distribution="categorical_w_probabilities", values=["a", "b"], probabilities=[0, 1])
    assert set(odds) == {"b"}


def test_nested_parameters_are_those_with_a_dot():
    nested = {
        "optim": {"parameters": {"lr": {"min": 0.0, "max": 1.0}, "ema": {"value": 0.9}}},
        "config": {"value": "c"},
    }
    dotted = {"optim.lr": {"min": 0.0, "max": 1.0}, "optim.ema": {"value": 0.9}, "config": {"value": "c"}}
    found = [sweep_file.combinations(check("random", parameters, run_cap=3)) for parameters in (nested, dotted)]
    assert found[0] == found[1] and set(found[0][0]) == {"optim.lr", "optim.ema", "config"}


def drawn_from(**how):
    return {"method": "random", "run_cap": 1, "parameters": {"a.b": how}}


@pytest.mark.parametrize(
    "how",
    [
        {"distribution": "log_uniform", "min": 800, "max": 900},
        {"distribution": "log_normal", "mu": 1000},
        {"distribution": "int_uniform", "min": 0.5, "max": 0.7},
        {"distribution": "q_normal", "mu": math.inf},
    ],
)
def test_what_cannot_be_drawn_is_one_line(how):
    with pytest.raises(InputError, match=r"^parameters\.x\.y: nothing can be drawn from"):
        drawn(**how)


SEED = {"train.seed": {"values": [1]}}


EARLY = {"type": "hyperband", "min_iter": 2}
METRIC = {"name": "val/abd400/psnr", "goal": "maximize"}


@pytest.mark.parametrize(
    ("early", "metric", "says"),
    [
        ({"type": "envelope"}, METRIC, "early_terminate: expected type: hyperband and min_iter, or"),
        ({**EARLY, "mi": 2}, METRIC, "early_terminate: unknown key 'mi'; there are: type, min_iter,"),
        ({**EARLY, "max_iter": 9, "s": 2}, METRIC, "expected either min_iter, or max_iter and s"),
        ({"type": "hyperband", "max_iter": 9}, METRIC, "expected either min_iter, or max_iter and s"),
        ({**EARLY, "min_iter": 0}, METRIC, "early_terminate.min_iter: expected a whole number of at least 1, found 0"),
        ({**EARLY, "eta": 1.0000000001}, METRIC, "early_terminate.eta: expected a number of at least 1.1, found 1.0"),
        ({**EARLY, "eta": math.inf}, METRIC, "early_terminate.eta: expected a number of at least 1.1, found inf"),
        ({"type": "hyperband", "max_iter": 27, "s": 4}, METRIC, "early_terminate.s: expected at most 3, found 4: the"),
        (
            {"type": "hyperband", "max_iter": 9, "s": 10**9, "eta": 1.5},
            METRIC,
            "early_terminate.s: expected at most 5,",
        ),
        ({"type": "hyperband", "max_iter": 2, "s": 1}, METRIC, "early_terminate.s: expected at most 0, found 1"),
        ({**EARLY, "strict": 1}, METRIC, "early_terminate.strict: expected true or false, found 1"),
        (EARLY, None, "early_terminate needs a metric, as in {name: val/abd400/psnr, goal: maximize}"),
        (EARLY, {**METRIC, "goal": "max"}, "metric.goal: expected minimize or maximize, found 'max'"),
    ],
)
def test_an_early_end_that_cannot_be_is_one_line(early, metric, says):
    with pytest.raises(InputError) as caught:
        check(parameters=SEED, early_terminate=early, metric=metric)
    assert says in str(caught.value)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ([], "expected a mapping"),
        ({"method": "bayes", "parameters": SEED}, "method: expected grid or random, found 'bayes'"),
        ({"method": "grid", "parameters": SEED, "job": "x"}, "there are no W&B launch jobs here"),
        ({"method": "grid", "parameters": SEED, "parmeters": {}}, "unknown key 'parmeters'; there are: method,"),
        ({"method": "grid"}, "parameters: expected a mapping"),
        ({"method": "random", "parameters": SEED}, "run_cap must give"),
        ({"method": "grid", "parameters": SEED, "run_cap": 0}, "run_cap: expected a number of runs"),
        ({"method": "grid", "parameters": SEED, "name": "a/b"}, "name: expected letters"),
        ({"method": "grid", "parameters": {"train.seed": 3}}, "expected a mapping with value"),
        ({"method": "grid", "parameters": {"train.seed": {"values": 3}}}, "expected a list of at least one value"),
        ({"method": "grid", "parameters": {"train.seed": {"min": 0, "max": 3}}}, "a range needs method: random"),
        (
            {"method": "grid", "parameters": {"train": {"parameters": {}}}},
            "parameters.train: expected parameters alone",
        ),
        (
            {"method": "grid", "parameters": {"train": {"parameters": SEED}, "train.train.seed": {"value": 1}}},
            "parameters.train.train.seed: given twice",
        ),
        (drawn_from(distribution="q_int_uniform", min=1, max=2), "expected one of uniform, int_uniform"),
        (drawn_from(distribution="beta", a=0), "a must be above 0, found 0"),
        (drawn_from(distribution="inv_log_uniform_values", min=0, max=1), "needs a min above 0"),
        (drawn_from(distribution="constant", values=[1]), "values goes with distribution categorical or"),
        ({"method": "grid", "parameters": {"train.seed": {"vals": [1]}}}, "unknown key 'vals'; there are: value,"),
        ({"method": "random", "run_cap": 1, "parameters": {"a.b": {"min": 2, "max": 1}}}, "min 2 is above max 1"),
        (
            {"method": "random", "run_cap": 1, "parameters": {"a.b": {"distribution": "gamma"}}},
            "distribution: expected one of uniform,",
        ),
        (
            {"method": "random", "run_cap": 1, "parameters": {"a.b": {"distribution": "uniform", "min": 0}}},
            "uniform needs a number max, found None",
        ),
        (drawn_from(values=[1, 2], probabilities=["a", "b"]), "a.b.probabilities: expected 2 numbers of at least 0"),
        (drawn_from(values=[1, 2], probabilities=[0, 0]), "a.b.probabilities: expected 2 numbers of at least 0"),
        (drawn_from(distribution="q_uniform", min=0, max=1, q=0), "a.b: q must be above 0, found 0"),
        (drawn_from(distribution="normal", mu="x"), "a.b: normal needs a number mu, found 'x'"),
    ],
)
def test_what_cannot_be_is_one_line(content, says):
    with pytest.raises(InputError) as caught:
        sweep_file.check(content, "sweep")
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


def test_file_errors_name_the_file(tmp_path):
    with pytest.raises(InputError, match=r"none\.yaml: expected a sweep file"):
        sweep_file.read(tmp_path / "none.yaml")
    (tmp_path / "bad.yaml").write_text("a: [")
    with pytest.raises(InputError, match=r"bad\.yaml: not valid YAML"):
        sweep_file.read(tmp_path / "bad.yaml")


def test_an_exponent_without_a_point_is_a_number(tmp_path):
    (tmp_path / "s.yaml").write_text(
        "method: random\nrun_cap: 2\nparameters:\n"
        "  optim.lr: {distribution: log_uniform_values, min: 1e-4, max: 1E-3}\n"
        "  optim.weight_decay: {value: 1e-2}\n  track.project: {value: 1e}\n"
    )
    parameters = sweep_file.read(tmp_path / "s.yaml").parameters
    assert (parameters["optim.lr"]["min"], parameters["optim.lr"]["max"]) == (1e-4, 1e-3)
    assert parameters["optim.weight_decay"]["value"] == 0.01
    assert parameters["track.project"]["value"] == "1e"
