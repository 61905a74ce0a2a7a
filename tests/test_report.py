"""Reports: compile and run apart, and a text that says what happened and what to do next."""

import time

import jax
import jax.numpy as jnp
import pytest

from probkit.report import Report, Seconds, timed


def test_the_first_call_compiles_and_the_second_does_not():
    program = jax.jit(lambda x: jnp.sum(jnp.sin(x) ** 2))
    x = jax.block_until_ready(jnp.arange(1000.0))
    out, first = timed(program, x)
    assert first.compile > 0
    assert first.run >= 0
    again, second = timed(program, x)
    assert second.compile == 0
    assert second.run > 0
    assert out == again


def test_a_new_shape_compiles_again():
    program = jax.jit(lambda x: x * 2)
    few, many = (jax.block_until_ready(jnp.ones(n)) for n in (3, 4))
    assert [timed(program, x)[1].compile > 0 for x in (few, few, many)] == [True, False, True]


def test_earlier_compilations_do_not_count():
    warm, fresh = jax.jit(lambda x: x + 1), jax.jit(lambda x: x + 2)
    x = jax.block_until_ready(jnp.ones(3))
    timed(warm, x)
    timed(fresh, x)
    assert timed(warm, x)[1].compile == 0


def test_the_parts_add_up_to_the_wall_time():
    program = jax.jit(lambda x: jnp.linalg.eigh(x @ x.T)[0])
    x = jax.block_until_ready(jnp.ones((50, 50)))
    begin = time.perf_counter()
    _, seconds = timed(program, x)
    wall = time.perf_counter() - begin
    assert 0 < seconds.compile + seconds.run <= wall


def test_it_waits_for_the_answer_and_passes_arguments_on():
    out, _ = timed(lambda a, b: {"sum": jnp.asarray(a) + b}, 2.0, 3.0)
    assert out["sum"] == 5.0


def test_an_error_comes_through():
    def broken():
        raise ValueError("inside")

    with pytest.raises(ValueError, match="inside"):
        timed(broken)


def test_seconds_add():
    assert Seconds(1.0, 2.0) + Seconds(0.5, 0.25) == Seconds(1.5, 2.25)
    assert Seconds() == Seconds(0.0, 0.0)


def test_the_text_of_a_good_report():
    text = str(
        Report(
            method="Auto()",
            rung="importance",
            converged=True,
            reason="3547 effective draws of 4000.",
            k_hat=-0.42,
            k_threshold=0.7,
            ess=3547.0,
            log_evidence=-637.5,
            seconds=Seconds(8.06, 0.0545),
            notes=("3 of 100 values are missing.",),
        )
    )
    assert text.startswith("Auto(): converged (importance). 3547 effective draws of 4000.")
    assert "k-hat -0.42" in text
    assert "compile 8.06, run 0.0545" in text
    assert "note: 3 of 100 values are missing." in text
    assert "next:" not in text
    assert "divergences" not in text  # what a method does not know is not shown


def test_the_text_of_a_bad_report():
    report = Report("NUTS()", "nuts", False, "Trouble: R-hat 1.31.", "Run longer.", divergences=0, bfmi=0.1)
    text = str(report)
    assert text.startswith("NUTS(): NOT converged (nuts). Trouble: R-hat 1.31.")
    assert "next: Run longer." in text
    assert "divergences 0" in text
    assert "E-BFMI 0.1" in text


def test_a_report_is_frozen():
    with pytest.raises(AttributeError):
        Report("MLE()", "mle", True, "").converged = False
