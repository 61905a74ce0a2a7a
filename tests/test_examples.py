"""The README's snippets run and its names exist; the examples read data, refuse mistakes and keep their promises.

The gate runs the examples whole (`.ci/run`); so does the test marked slow.
"""

import importlib.util
import os
import re
import subprocess
import sys
from unittest import mock

import numpy as np
import pandas as pd
import pytest
from helpers import ROOT, tol

import probkit as pk

README = (ROOT / "README.md").read_text(encoding="utf-8")
EXAMPLES = sorted((ROOT / "examples").glob("*.py"))


@pytest.fixture(scope="module")
def example():
    """examples/compare_posteriors.py as a module; what it sets in the environment goes again."""
    path = ROOT / "examples" / "compare_posteriors.py"
    spec = importlib.util.spec_from_file_location("compare_posteriors", path)
    module = importlib.util.module_from_spec(spec)
    with mock.patch.dict(os.environ):
        spec.loader.exec_module(module)
    return module


def write(folder, text):
    path = folder / "data.csv"
    path.write_text(text, encoding="utf-8")
    return str(path)


class TestReadme:
    @pytest.mark.once
    def test_snippets_run(self, capsys):
        snippets = re.findall(r"^```python\n(.*?)^```", README, re.DOTALL | re.MULTILINE)
        assert len(snippets) == 2
        names = {"__name__": "readme"}
        for snippet in snippets:
            exec(compile(snippet, "README.md", "exec"), names)
        assert names["posterior"].report.converged
        assert names["line"].report.converged
        assert "elpd" in capsys.readouterr().out

    def test_has_the_two_commands(self):
        commands = re.findall(r"^```sh\n(.*?)^```", README, re.DOTALL | re.MULTILINE)
        assert len(commands) == 2
        assert "python examples/compare_posteriors.py --out results" in commands[0]
        assert commands[1].rstrip().endswith("pytest")
        assert f"\n<!-- tests -->\n```sh\n{commands[1]}```" in README

    def test_names_exist(self):
        for dotted in set(re.findall(r"\bpk((?:\.\w+)+)", README)):
            found = pk
            for name in dotted[1:].split("."):
                assert hasattr(found, name), f"README names pk{dotted}"
                found = getattr(found, name)

    @pytest.mark.parametrize(("row", "kind"), [("Posterior", pk.Posterior), ("Prediction", pk.Prediction)])
    def test_attributes_exist(self, row, kind):
        cell = re.search(rf"^\| {row} \| (.*) \|$", README, re.MULTILINE)[1]
        fields = set(kind.__dataclass_fields__)
        for name in re.findall(r"`\.(\w+)", cell):
            assert hasattr(kind, name) or name in fields, f"README names {row}.{name}"

    def test_files_exist(self):
        for name in re.findall(r"`((?:examples|probkit)/[\w/]+\.py)`", README) + re.findall(
            r"\]\((?!http)([^)]+)\)", README
        ):
            assert (ROOT / name).is_file(), name
        assert (ROOT / "docs" / "compare.png").stat().st_size < 300_000


class TestReadSeries:
    def test_the_only_numeric_column(self, example, tmp_path):
        y = example.read_series(write(tmp_path, "shop,sold\na,1\na,\na,3\n"))
        np.testing.assert_array_equal(y, [1.0, np.nan, 3.0])
        assert (y.name, y.attrs["title"]) == ("sold", "data")

    def test_months_in_any_order_with_one_left_out(self, example, tmp_path):
        months = pd.date_range("2020-01", periods=8, freq="MS")
        rows = [f"{month:%Y-%m-%d},{i}" for i, month in enumerate(months) if i != 5]
        y = example.read_series(write(tmp_path, "\n".join(["ds,y", *reversed(rows)])), "y")
        np.testing.assert_array_equal(y, [0, 1, 2, 3, 4, np.nan, 6, 7])
        assert list(y.index) == list(months)
        assert y.index.name == "ds"

    def test_years_stay_numbers(self, example, tmp_path):
        y = example.read_series(write(tmp_path, "date,y\n1871,1\n1872,2\n1874,4\n"))
        assert list(y.index) == [1871, 1872, 1873, 1874]
        np.testing.assert_array_equal(y, [1, 2, np.nan, 4])

    @pytest.mark.parametrize(
        ("text", "column", "message"),
        [
            ("a,b\n1,2\n", "y", r"no column 'y'; the numeric columns are \['a', 'b'\]"),
            ("a,b\n1,2\n", None, r"name one column with --column; the numeric columns are \['a', 'b'\]"),
            ("a,b\n1,x\n", "b", "'b' is not numeric"),
            ("ds,y\n2020-01-01,1\n2020-01-01,2\n", "y", "'ds' must hold evenly spaced times: .* repeated"),
            ("ds,y\nmonday,1\ntuesday,2\n", "y", "'ds' must hold evenly spaced times"),
            ("ds,y\n2020-01-01,1\n2020-01-05,2\n2020-03-07,2\n", "y", "no frequency fits"),
        ],
    )
    def test_mistakes(self, example, tmp_path, text, column, message):
        with pytest.raises(ValueError, match=message):
            example.read_series(write(tmp_path, text), column)


class TestArguments:
    def test_defaults(self, example, tmp_path):
        found = example.arguments(["--out", str(tmp_path / "a" / "b")])
        assert (found.horizon, found.method, found.seed) == (10, "auto", 1)
        assert found.out.is_dir()
        pd.testing.assert_series_equal(found.y, pk.datasets.nile())

    def test_a_series_of_the_package(self, example, tmp_path):
        argv = ["--dataset", "nottem", "--models", "structural", "ets", "--period", "12", "--out", str(tmp_path)]
        found = example.arguments(argv)
        assert (found.models, found.period) == (["structural", "ets"], 12)
        pd.testing.assert_series_equal(found.y, pk.datasets.nottem())

    def test_every_series_and_model_is_there(self, example):
        assert all(callable(getattr(pk.datasets, name)) for name in example.DATASETS)
        assert all(isinstance(build(12), pk.Model) for _, build in example.MODELS.values())

    @pytest.mark.parametrize(
        ("argv", "message"),
        [
            (["--help"], "usage:"),
            (["--horizon", "0"], "argument --horizon: 0 is not a positive number of steps"),
            (["--method", "mcmc"], "argument --method: invalid choice"),
            (["--column", "y"], "argument --column: it needs --data"),
            (["--data", "nowhere.csv"], "No such file"),
            (["--data", "some.csv", "--dataset", "nile"], "argument --dataset: not with --data"),
            (["--models", "level"], "argument --models: level are not two models or more, each once"),
            (["--models", "level", "ets"], "argument --period: 1; structural, ets, airline, periodic-gp need a season"),
        ],
    )
    def test_messages(self, example, capsys, argv, message):
        with pytest.raises(SystemExit) as end:
            example.arguments(argv)
        said = capsys.readouterr()
        assert message in said.out + said.err
        assert end.value.code == (0 if argv == ["--help"] else 2)


def test_implied_arima_has_the_autocovariances_of_the_level(example):
    level, obs = np.array([1.0, 0.01, 50.0]), np.array([2.0, 1.0, 1e-3])
    ma, scale = example.implied_arima(level, obs)
    # Of the differences: level² + 2 obs² and -obs² in one form, scale² (1 + ma²) and scale² ma in the other.
    np.testing.assert_allclose(scale**2 * (1 + ma**2), level**2 + 2 * obs**2, rtol=1e-12)
    np.testing.assert_allclose(scale**2 * ma, -(obs**2), rtol=1e-12)
    q = (level[:2] / obs[:2]) ** 2
    np.testing.assert_allclose(ma[:2], (np.sqrt(q**2 + 4 * q) - q - 2) / 2, rtol=1e-9)


def test_a_local_level_is_its_arima(example):
    y = pk.datasets.nile()
    level = pk.LocalLevel(level_scale=38.3, obs_scale=122.9)
    ma, scale = example.implied_arima(np.array(38.3), np.array(122.9))
    arima = pk.ARIMA(0, 1, 1, ma=np.array([ma]), scale=float(scale))
    values = np.asarray(y)
    np.testing.assert_allclose(level.log_likelihood(values), arima.log_likelihood(values), rtol=tol(1e-12, 1e-5))


@pytest.mark.slow
@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_whole(path, tmp_path):
    subprocess.run([sys.executable, str(path), "--out", str(tmp_path)], check=True, cwd=tmp_path)
    figures = list(tmp_path.glob("*.png"))
    assert figures
    assert all(figure.stat().st_size > 0 for figure in figures)
