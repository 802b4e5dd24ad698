"""Adapters: without effect at first, alone in training, merged, switched off."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest
from flax import nnx
from safetensors.numpy import load_file, save_file

from aha_lib import devices
from aha_lib.model import export, lora
from aha_lib.model.block import WEIGHTS
from aha_lib.model.gemma import Gemma
from aha_lib.presets import ModelConfig

CONFIG = ModelConfig(
    vocab=32,
    layers=3,
    width=24,
    heads=4,
    kv_heads=2,
    head_dim=8,
    ff=40,
    global_every=2,
    window=4,
    qk_norm=True,
    post_norms=True,
)
TOKENS = jnp.arange(18).reshape(2, 9) * 7 % 32


@nnx.jit
def forward(model):
    positions = jnp.broadcast_to(jnp.arange(9), TOKENS.shape)
    return model.logits(model.hidden(TOKENS, positions, jnp.ones_like(TOKENS)))


@pytest.fixture(scope="module")
def base():
    return nnx.jit(lambda: Gemma(CONFIG, rngs=nnx.Rngs(0)))()


@pytest.fixture
def model(base):
    """A model whose adapters of rank 3 have random values."""
    model = lora.off(base)
    lora.add(model, 3, rngs=nnx.Rngs(1))
    draw = np.random.default_rng(0).normal
    values = jax.tree.map(
        lambda x: jnp.asarray(draw(size=x.shape) * 0.2, x.dtype), nnx.state(model, nnx.LoRAParam)
    )
    nnx.update(model, values)
    return model


def test_new_adapters_change_nothing(base):
    model = lora.off(base)
    lora.add(model, 2, rngs=nnx.Rngs(1), targets=("q", "down"))
    shapes = {
        name: x.shape
        for name, x in nnx.to_pure_dict(nnx.state(model, nnx.LoRAParam))["layers"].items()
    }
    assert shapes == {
        "q_a": (3, 24, 2),
        "q_b": (3, 2, 4, 8),
        "down_a": (3, 40, 2),
        "down_b": (3, 2, 24),
    }
    np.testing.assert_array_equal(forward(model), forward(base))
    assert np.std(model.layers.q_a[...]) == pytest.approx(24**-0.5, rel=0.2)


def test_they_act_as_the_product_of_their_matrices(base, model):
    """Against weights that NumPy has added the products to."""
    dense = lora.off(base)
    for name, (inputs, _) in WEIGHTS.items():
        a, b = (np.asarray(getattr(model.layers, f"{name}_{x}")[...], np.float64) for x in "ab")
        w = np.asarray(getattr(dense.layers, name)[...], np.float64)
        i = int(np.prod(w.shape[1 : 1 + len(inputs)]))
        product = a.reshape(3, i, 3) @ b.reshape(3, 3, -1)
        getattr(dense.layers, name)[...] = jnp.asarray(w + product.reshape(w.shape), jnp.float32)
    changed = forward(model)
    assert np.abs(changed - forward(base)).max() > 0.1
    np.testing.assert_allclose(changed, forward(dense), rtol=0, atol=2e-4)
    np.testing.assert_allclose(changed, forward(lora.merge(model)), rtol=0, atol=2e-4)


def test_prefill_has_them_too(model):
    positions = jnp.broadcast_to(jnp.arange(9), TOKENS.shape)
    hidden, _ = model.extend(TOKENS, positions, model.empty_cache(2, 9), 0)
    np.testing.assert_allclose(model.logits(hidden), forward(model), rtol=0, atol=1e-4)


def test_off_is_the_base_and_copies_nothing(base, model):
    reference, (_, kept) = lora.off(model), nnx.state(model, nnx.LoRAParam, ...)
    for shared, own in zip(*map(jax.tree.leaves, (nnx.state(reference), kept)), strict=True):
        assert shared is own
    merged = lora.merge(model)
    assert merged.embed[...] is model.embed[...]
    assert not nnx.state(merged, nnx.LoRAParam)
    np.testing.assert_array_equal(forward(reference), forward(base))


def test_only_adapters_train_and_are_kept(base, model, tmp_path):
    optimizer = nnx.Optimizer(model, optax.adam(1e-2), wrt=nnx.LoRAParam)
    before = jax.tree.map(np.asarray, nnx.state(model, nnx.LoRAParam))

    @nnx.jit
    def step(model, optimizer):
        def loss(model):
            return -jax.nn.log_softmax(forward(model))[:, :, 5].mean()

        value, gradient = nnx.value_and_grad(loss, argnums=nnx.DiffState(0, nnx.LoRAParam))(model)
        optimizer.update(model, gradient)
        return value

    first, *_, last = (step(model, optimizer) for _ in range(8))
    assert last < first
    np.testing.assert_array_equal(forward(lora.off(model)), forward(base))
    after = nnx.state(model, nnx.LoRAParam)
    assert all(jax.tree.leaves(jax.tree.map(lambda a, b: (a != b).any(), before, after)))
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "adapters", nnx.to_pure_dict(after))
        checkpointer.wait_until_finished()
        kept = checkpointer.restore(tmp_path / "adapters")
    fresh = lora.off(base)
    lora.add(fresh, 3, rngs=nnx.Rngs(9))
    nnx.update(fresh, kept)
    np.testing.assert_array_equal(forward(fresh), forward(model))


def test_bfloat16_base(base):
    model = nnx.eval_shape(
        lambda: Gemma(CONFIG, rngs=nnx.Rngs(0), dtype=jnp.bfloat16, param_dtype=jnp.bfloat16)
    )
    nnx.update(model, jax.tree.map(lambda x: x.astype(jnp.bfloat16), nnx.state(base)))
    lora.add(model, 2, rngs=nnx.Rngs(0))
    assert model.layers.q_a.dtype == jnp.float32 and lora.off(model).dtype == jnp.bfloat16
    assert forward(model).dtype == jnp.float32


@pytest.fixture(scope="module")
def half(base):
    """A bfloat16 base whose adapters move weights by a little, as those of a few steps do."""
    model = nnx.eval_shape(
        lambda: Gemma(CONFIG, rngs=nnx.Rngs(0), dtype=jnp.bfloat16, param_dtype=jnp.bfloat16)
    )
    nnx.update(model, jax.tree.map(lambda x: x.astype(jnp.bfloat16), nnx.state(base)))
    lora.add(model, 2, rngs=nnx.Rngs(0))
    draw = np.random.default_rng(0).normal
    for name in WEIGHTS:
        b = getattr(model.layers, f"{name}_b")
        b[...] = jnp.asarray(draw(size=b.shape) * 2e-4, jnp.float32)
    return model


def test_merging_loses_nothing_of_a_small_update(half):
    """A bfloat16 has 8 bits: rounded to it, most of these weights would not move."""
    merged = lora.merge(half)
    assert not nnx.state(merged, nnx.LoRAParam)
    for name, (inputs, _) in WEIGHTS.items():
        a, b, w = (
            np.asarray(getattr(half.layers, x)[...], np.float64)
            for x in (f"{name}_a", f"{name}_b", name)
        )
        fan_in = int(np.prod(w.shape[1 : 1 + len(inputs)]))
        update = (a.reshape(3, fan_in, 2) @ b.reshape(3, 2, -1)).reshape(w.shape)
        got = np.asarray(getattr(merged.layers, name)[...], np.float64) - w
        assert np.linalg.norm(got - update) < 1e-3 * np.linalg.norm(update), name
    exact = nnx.merge(*nnx.split(half))
    exact.dtype = jnp.dtype("float32")
    np.testing.assert_allclose(forward(merged), forward(exact), rtol=0, atol=1e-5)
    assert np.abs(forward(merged) - forward(lora.off(exact))).max() > 1e-3, "the update is seen"


def test_how_much_rounding_loses(half):
    found, halved = lora.rounding(half, jnp.bfloat16), lora.merge(half, jnp.bfloat16)
    lost, updates, still = [], [], []
    for name, merged in lora._merged_weights(half).items():
        base = np.asarray(getattr(half.layers, name)[...], np.float64)
        rounded = np.asarray(getattr(halved.layers, name)[...], np.float64)
        lost.append(np.ravel(rounded - merged))
        updates.append(np.ravel(merged - base))
        still.append(np.ravel(rounded == base))
    lost, updates, still = map(np.concatenate, (lost, updates, still))
    assert found.error == pytest.approx(np.linalg.norm(lost) / np.linalg.norm(updates), rel=1e-3)
    assert found.unmoved == still.mean() > 0.3
    assert str(found).startswith("Rounding to bfloat16 loses ") and found.error > 0.2
    whole = lora.rounding(half, jnp.float32)
    assert whole.error < 1e-3 and whole.unmoved < 0.01
    with pytest.raises(ValueError, match="no adapters"):
        lora.rounding(lora.off(half))


def test_rounding_by_hand(base):
    """Above 1 the next bfloat16 is 1 + 2^-7: an update of a tenth of that is lost as a whole."""
    for update, error, unmoved in ((2**-7 / 10, 1, 1), (2**-7, 0, 0)):
        model = lora.off(base)
        model.layers.q[...] = jnp.ones_like(model.layers.q[...])
        lora.add(model, 1, rngs=nnx.Rngs(0), targets=("q",))
        model.layers.q_a[...] = jnp.ones_like(model.layers.q_a[...])
        model.layers.q_b[...] = jnp.full_like(model.layers.q_b[...], update)
        found = lora.rounding(model)
        assert (found.error, found.unmoved) == (pytest.approx(error, abs=1e-4), unmoved)


def test_sharded_as_their_weights(base):
    mesh = devices.make_mesh()
    model = lora.off(base)
    nnx.update(model, jax.device_put(nnx.state(model), devices.shardings(model, mesh)))
    lora.add(model, 2, rngs=nnx.Rngs(0))
    adapters = nnx.state(model, nnx.LoRAParam)
    wanted = jax.tree.leaves(devices.shardings(adapters, mesh))
    assert [x.sharding for x in jax.tree.leaves(adapters)] == wanted
    assert model.layers.gate_b.get_metadata()["axes"] == ("layers", None, "ff")


def test_in_a_file_and_back(base, model, tmp_path):
    lora.save(model, tmp_path / "adapters.safetensors")
    fresh = lora.off(base)
    lora.load(fresh, tmp_path / "adapters.safetensors")
    rounded = lora.off(base)
    lora.add(rounded, 3, rngs=nnx.Rngs(0))
    nnx.update(
        rounded,
        jax.tree.map(
            lambda x: x.astype(jnp.bfloat16).astype(x.dtype), nnx.state(model, nnx.LoRAParam)
        ),
    )
    np.testing.assert_array_equal(forward(fresh), forward(rounded))
    np.testing.assert_allclose(forward(fresh), forward(model), rtol=0, atol=0.1)
    some = lora.off(base)
    lora.add(some, 2, rngs=nnx.Rngs(0), targets=("v", "down"))
    lora.save(some, tmp_path / "some.safetensors")
    fresh = lora.off(base)
    lora.load(fresh, tmp_path / "some.safetensors")
    assert nnx.to_pure_dict(nnx.state(fresh, nnx.LoRAParam))["layers"].keys() == {
        "v_a",
        "v_b",
        "down_a",
        "down_b",
    }


def test_a_file_of_other_adapters_is_a_sentence(base, model, tmp_path):
    path = tmp_path / "adapters.safetensors"
    lora.save(model, path)
    whole = path.read_bytes()
    other = Gemma(dataclasses.replace(CONFIG, width=32), rngs=nnx.Rngs(0))
    with pytest.raises(ValueError, match="another model's adapters"):
        lora.load(other, path)
    path.write_bytes(whole[:100])
    with pytest.raises(ValueError, match="is damaged"):
        lora.load(lora.off(base), path)
    with pytest.raises(OSError):
        lora.load(lora.off(base), tmp_path / "nowhere")
    assert not nnx.state(other, nnx.LoRAParam), "a model that got no adapters is as it was"
    path.write_bytes(whole)
    fresh = lora.off(base)
    lora.load(fresh, path)


@pytest.mark.parametrize("changed", ["q_a", "down_b"])
def test_a_file_of_which_one_matrix_is_another_s(base, model, tmp_path, changed):
    """And the model has no empty adapters afterwards: the right file can be loaded."""
    right, wrong = tmp_path / "right.safetensors", tmp_path / "wrong.safetensors"
    lora.save(model, right)
    adapters = load_file(right)
    save_file(adapters | {changed: adapters[changed][:, :-1].copy()}, wrong)
    fresh = lora.off(base)
    for _ in range(2):
        with pytest.raises(ValueError, match="another model's adapters"):
            lora.load(fresh, wrong)
    assert not nnx.state(fresh, nnx.LoRAParam)
    lora.load(fresh, right)
    np.testing.assert_allclose(forward(fresh), forward(model), rtol=0, atol=0.1)


def test_adapters_larger_than_the_weights_are_refused(base):
    """24 inputs and 32 outputs are the most that a weight has here; nothing is allocated."""
    model = lora.off(base)
    with pytest.raises(ValueError, match="rank 1000000000 .* lora, .* at most 24 for this model"):
        lora.add(model, 1_000_000_000, rngs=nnx.Rngs(0))
    with pytest.raises(ValueError, match="at most 16 "):
        lora.add(model, 17, rngs=nnx.Rngs(0), targets=("k",))
    lora.add(model, 24, rngs=nnx.Rngs(0))


def test_a_model_without_adapters_is_not_written_as_some(base, tmp_path):
    with pytest.raises(ValueError, match="no adapters"):
        lora.save(base, tmp_path / "adapters.safetensors")


@pytest.mark.parametrize("rank, targets", [(0, ("q",)), (2, ("embed",)), (2, ("q", "lm_head"))])
def test_wrong_adapters(base, rank, targets):
    with pytest.raises(ValueError, match="rank of at least 1 .* targets among q, k, v, o"):
        lora.add(lora.off(base), rank, rngs=nnx.Rngs(0), targets=targets)


def test_no_second_adapters_and_no_export_with_them(model, tmp_path):
    with pytest.raises(ValueError, match="has none yet"):
        lora.add(model, 2, rngs=nnx.Rngs(0))
    for save in (export.save_hf, export.save_kaggle):
        with pytest.raises(ValueError, match="lora.merge"):
            save(model, tmp_path / "out")
    export.save_hf(lora.merge(model), tmp_path / "merged")
    assert (tmp_path / "merged" / "model.safetensors").exists()
