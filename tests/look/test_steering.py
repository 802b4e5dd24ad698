"""One direction: without effect until it has a strength, trained alone, read where it belongs."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from aha_lib import loop
from aha_lib.look import steering
from aha_lib.model import block, export, lora, weights
from aha_lib.model.gemma import Gemma
from aha_lib.presets import PUZZLES, SETTINGS, ModelConfig
from aha_lib.rl import grpo, sampler
from aha_lib.tasks import countdown
from aha_lib.tasks import rollout as rollouts
from aha_lib.tasks.rollout import Policy
from aha_lib.tasks.task import Countdown

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
POSITIONS = jnp.broadcast_to(jnp.arange(9), TOKENS.shape)
SMALL = dataclasses.replace(SETTINGS["tiny"], prompts=8, group=4, completion_len=64)


@pytest.fixture(scope="module")
def small():
    return nnx.jit(lambda: Gemma(CONFIG, rngs=nnx.Rngs(0)))()


@pytest.fixture
def model(small):
    return lora.off(small)  # shares its arrays; what is added is its own


@nnx.jit
def forward(model):
    return model.hidden(TOKENS, POSITIONS, jnp.ones_like(TOKENS))


TASK = Countdown()


@pytest.fixture(scope="module")
def base():
    return weights.load("tiny", dtype=jnp.float32)[:2]


@pytest.fixture(scope="module")
def rollout(base):
    puzzles = [countdown.generate(5, i, PUZZLES["tiny"]) for i in range(64)]
    policy = Policy(*base, TASK, SMALL)
    return rollouts.rollout(policy, puzzles, jax.random.key(1), group=4, temperature=1.0)


def test_the_residual_stream_ends_where_the_hidden_states_begin(model):
    stream = nnx.jit(lambda m: m.residuals(TOKENS, POSITIONS, jnp.ones_like(TOKENS)))(model)
    assert stream.shape == (3, *TOKENS.shape, 24)
    last = block.rms_norm(stream[-1], model.final_norm[...], CONFIG.norm_eps)
    np.testing.assert_allclose(last, forward(model), rtol=1e-5, atol=1e-5)


def test_a_new_direction_changes_nothing(model):
    before = forward(model)
    steering.add(model)
    np.testing.assert_array_equal(forward(model), before)
    assert not nnx.to_pure_dict(nnx.state(lora.off(model)))["layers"].keys() & {"direction"}


def test_merging_keeps_a_direction_and_an_export_refuses_it(model, tmp_path):
    steering.add(model)
    steering.steer(model, np.ones(24), 1, 2.0)
    pushed = forward(model)
    np.testing.assert_allclose(forward(lora.merge(model)), pushed, rtol=1e-5, atol=1e-5)
    for given in (model, lora.merge(model)):
        with pytest.raises(ValueError, match=r"steered, .*lora\.off\(model\)"):
            export.save_hf(given, tmp_path / "out")
    with pytest.raises(ValueError, match="no adapters"):
        lora.save(model, tmp_path / "adapters.safetensors")
    export.save_hf(lora.off(model), tmp_path / "out")
    assert np.abs(forward(lora.off(model)) - pushed).max() > 0.1, "the push is gone"


@pytest.mark.parametrize("layer", [0, 2])
def test_a_push_moves_one_layer_s_stream_by_itself(model, layer):
    stream = nnx.jit(lambda m: m.residuals(TOKENS, POSITIONS, jnp.ones_like(TOKENS)))
    before = stream(model)
    steering.add(model)
    direction = np.random.default_rng(0).normal(size=24).astype(np.float32)
    steering.steer(model, direction, layer, -1.5)
    after = stream(model)
    np.testing.assert_array_equal(after[:layer], before[:layer])
    np.testing.assert_allclose(
        after[layer] - before[layer],
        np.broadcast_to(-1.5 * direction, (*TOKENS.shape, 24)),
        atol=1e-5,
    )


@pytest.mark.slow
def test_the_sampler_is_pushed_as_the_trainer_is(base):
    """Its log-probabilities are those of a forward pass; without a push they are the base's."""
    model, tokenizer = lora.off(base[0]), base[1]
    puzzles = [countdown.generate(5, i, PUZZLES["tiny"]) for i in range(8)]

    def draw(model):
        policy = Policy(model, tokenizer, TASK, SMALL)
        return rollouts.rollout(policy, puzzles, jax.random.key(1), group=4, temperature=1.0)

    plain = draw(model)
    steering.add(model)
    np.testing.assert_array_equal(draw(model).completions.tokens, plain.completions.tokens)
    direction = np.random.default_rng(0).normal(size=model.config.width).astype(np.float32)
    steering.steer(model, direction, 1, 3.0)
    out = draw(model)
    assert (out.completions.tokens != plain.completions.tokens).any()
    batch = loop.to_batch(out, rollouts.score(TASK, out, 4), SMALL)
    logprobs, _ = nnx.jit(lambda m, b: grpo.completion_logprobs(m, b, 1.0))(model, batch)
    np.testing.assert_allclose(
        np.where(batch.mask, logprobs, 0.0), out.completions.logprobs, atol=2e-4
    )


@pytest.mark.slow
def test_another_push_compiles_nothing(base, rollout):
    model = lora.off(base[0])
    steering.add(model)
    prompts, valid = rollout.prompts[::4][:8], rollout.valid[::4][:8]
    draw = lambda: sampler.sample(  # noqa: E731
        model,
        prompts,
        valid,
        jax.random.key(0),
        sampler.Sampling(group=1, length=8, stop_ids=[], pad_id=0, stages=1),
    )
    draw()
    before = sampler._decode._cache_size()
    for layer, strength in ((0, 1.0), (3, -2.0)):
        steering.steer(model, np.ones(model.config.width), layer, strength)
        draw()
    assert sampler._decode._cache_size() == before


@pytest.mark.slow
def test_grpo_trains_the_direction_alone(base):
    model = lora.off(base[0])
    steering.add(model)
    steering.steer(model, np.zeros(model.config.width), 1, 1.0)
    s = dataclasses.replace(SMALL, lora=1, learning_rate=0.1)
    graph, params = nnx.split(model)
    learned, _ = grpo.trainable(params, s.lora)
    assert sum(x.size for x in jax.tree.leaves(learned)) == model.config.width
    before = jax.tree.map(np.asarray, nnx.to_pure_dict(params))  # the state is donated
    policy = Policy(model, base[1], TASK, s)
    loop.step(policy, grpo.optimizer(s).init(learned), None, 1, jax.random.key(0))
    after = nnx.to_pure_dict(nnx.state(model))
    moved = jax.tree.map(lambda a, b: bool((a != b).any()), before, after)
    assert moved["layers"].pop("direction")
    assert not any(jax.tree.leaves(moved))


@pytest.mark.slow
def test_decisions_fall_where_the_text_says(base, rollout):
    tokenizer, at = base[1], steering.decisions(rollout, base[1])
    ids = np.concatenate([rollout.prompts, rollout.completions.tokens], axis=1)
    assert set(at.noes[at.row == 0]) >= {0} and (at.noes > 0).sum() > 10
    for row, token, noes, tries in zip(*at, strict=True):
        before, after = (
            tokenizer.decode(ids[row, : token + 1]),
            tokenizer.decode(ids[row, token + 1 :]),
        )
        assert before.endswith("no" if noes else ":"), before
        assert before.split().count("no") == noes
        assert after.startswith("<answer>") != tries, after


@pytest.mark.slow
def test_decisions_of_nothing_are_none(base, rollout):
    """Of completions without an attempt or an answer, and of no completions at all."""
    silent = dataclasses.replace(rollout, texts=[""] * len(rollout.texts))
    none = dataclasses.replace(rollout, texts=[], puzzles=[])
    for out in (silent, none):
        at = steering.decisions(out, base[1])
        assert [len(column) for column in at] == [0, 0, 0, 0] and at.tries.dtype == bool
    assert steering.activations(base[0], silent, at).shape == (4, 0, base[0].config.width)


@pytest.mark.parametrize("tries", [[True, True], [False, False], []])
def test_a_direction_needs_both_kinds(tries):
    cloud, tries = np.ones((1, len(tries), 4)), np.array(tries, bool)
    for find in (steering.difference, steering.probe):
        with pytest.raises(ValueError, match=f"Of {len(tries)} decisions {tries.sum()} are"):
            find(cloud, tries)


@pytest.mark.slow
def test_activations_are_those_of_one_row_read_alone(base, rollout):
    at = steering.decisions(rollout, base[1])
    found = steering.activations(base[0], rollout, at)
    assert found.shape == (4, len(at.row), base[0].config.width)
    i = len(at.row) - 1  # in the last, odd part of the rows
    row, token = at.row[i], at.token[i]
    ids = np.concatenate([rollout.prompts[row], rollout.completions.tokens[row]])
    real = np.concatenate([rollout.valid[row], rollout.completions.mask[row]])[: token + 1]
    tokens = jnp.asarray(ids[: token + 1][real])[None]
    alone = nnx.jit(lambda m, t: m.residuals(t, jnp.arange(t.shape[1])[None], jnp.ones_like(t)))
    np.testing.assert_allclose(found[:, i], alone(base[0], tokens)[:, 0, -1], rtol=1e-3, atol=1e-3)


def test_a_direction_that_is_there_is_found():
    """Of two clouds that differ along one axis of four, with a louder axis beside it."""
    rng, tries = np.random.default_rng(0), np.arange(400) % 2 == 0
    cloud = rng.normal(size=(1, 400, 4)) * [1, 5, 1, 1]
    cloud[0, :, 1] += cloud[0, :, 0] * 3  # what the probe has to see through
    cloud[0, tries, 0] += 2
    np.testing.assert_allclose(steering.difference(cloud, tries)[0][[0, 2, 3]], [2, 0, 0], atol=0.3)
    apart = {
        f: steering.separation((cloud @ f(cloud, tries)[0])[0], tries)
        for f in (steering.difference, steering.probe)
    }
    assert apart[steering.probe] > 0.9 > apart[steering.difference] + 0.05
    swapped = rng.permutation(tries)
    assert abs(steering.separation(cloud[0] @ steering.probe(cloud, tries)[0], swapped) - 0.5) < 0.1


def test_the_principal_component_is_where_it_varies_most():
    """Labels or none: two clouds far apart differ most along the way between them."""
    rng = np.random.default_rng(0)
    tries = rng.random(200) < 0.4
    cloud = rng.normal(size=(2, 200, 4)).astype(np.float32)
    cloud[0, :, 2] += 6 * tries
    cloud[1] *= [0, 3, 0, 0]
    component, share = steering.principal(cloud)
    way = steering.difference(cloud, tries)[0]
    assert abs(component[0] @ way) / np.linalg.norm(way) > 0.98
    np.testing.assert_allclose(np.linalg.norm(component, axis=1), 1, rtol=1e-5)
    along, total = np.var(cloud[0] @ component[0]), np.var(cloud[0], axis=0).sum()
    np.testing.assert_allclose(share, [along / total, 1], rtol=1e-4)
    with pytest.raises(ValueError, match="two decisions"):
        steering.principal(cloud[:, :1])


def test_bad_input_is_a_sentence(model):
    with pytest.raises(ValueError, match="has no layer 3|There is no layer 3"):
        steering.steer(model, np.zeros(24), 3, 1.0)
    steering.add(model)
    with pytest.raises(ValueError, match="a direction, already"):
        steering.add(model)


def test_a_bias_shifts_the_logit_of_one_token_alone(model):
    hidden = forward(model)
    before = model.logits(hidden)
    biased = steering.WithTokenBias(model, 5)
    np.testing.assert_array_equal(biased.logits(hidden), before)
    biased.bias[...] = jnp.full(1, -3.0)
    after = biased.logits(hidden)
    np.testing.assert_allclose(after[..., 5], before[..., 5] - 3, rtol=1e-6)
    np.testing.assert_array_equal(np.delete(after, 5, -1), np.delete(before, 5, -1))
    trained, rest = grpo.trainable(nnx.state(biased), 1)
    assert [x.shape for x in jax.tree.leaves(trained)] == [(1,)]
    assert len(jax.tree.leaves(rest)) == len(jax.tree.leaves(nnx.state(model)))
    with pytest.raises(ValueError, match="no token 32"):
        steering.WithTokenBias(model, 32)
