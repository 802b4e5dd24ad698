"""A program's operations are found in the profiler's trace, and named as JAX names them."""

import jax
import jax.numpy as jnp
import pytest

from aha_lib.look import profile


def loop_of_products(a):
    return jax.lax.fori_loop(0, 5, lambda i, x: jnp.tanh(x @ a), a)


@pytest.fixture(scope="module")
def found():
    return profile.profile(jax.jit(loop_of_products), jnp.full((256, 256), 0.01))


def test_the_products_and_what_follows_them_are_found(found):
    assert found.calls["dot_general"] % 5 == 0, "one for each turn of the loop, or a few threads'"
    assert "tanh" in found.seconds
    assert next(iter(found.seconds)) == max(found.seconds, key=found.seconds.get)


def test_the_loop_itself_is_not_counted_beside_what_it_runs(found):
    assert not [kind for kind in found.seconds if kind.startswith(("while", "call"))]
    threads = 64
    assert 0 < found.total < threads * found.wall


def test_nothing_but_the_programs_operations_is_counted(found):
    assert not [kind for kind in found.seconds if "::" in kind or ":" in kind or "$" in kind]


def test_rows_are_the_longest_kinds(found):
    (row,) = found.rows(1)
    kind = next(iter(found.seconds))
    share = found.seconds[kind] / found.total
    assert row[0] == kind and row[1] == str(found.calls[kind]) and row[3] == f"{share:.0%}"


def test_an_operation_is_called_by_its_primitive():
    hlo = (
        '%fusion.7 = f32[2]{0} fusion(%a), metadata={op_name="jit(f)/jvp()/while/body/tanh"}\n'
        'bitcast_fusion.2 = f32[2]{0} fusion(%a), metadata={op_name="jit(f)/jvp()/closed_call"}\n'
    )
    made_from = profile.primitives(hlo)
    assert profile.kind_of("bitcast_fusion.2", made_from) == "bitcast_fusion"
    assert profile.kind_of("fusion.7", made_from) == "tanh"
    assert profile.kind_of("copy.3", made_from) == "copy"
    assert profile.kind_of("ynn_fusion.12", made_from) == "dot_general"


def test_the_profilers_words_go_nowhere(capfd):
    profile.profile(jax.jit(jnp.tanh), jnp.ones(8))
    assert capfd.readouterr().err == ""
