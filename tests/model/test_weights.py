"""Loading and saving in every layout; what broken checkpoints and downloads are told."""

import dataclasses
import json
import os
import shutil
import subprocess
import sys
import traceback
from pathlib import Path

import jax
import jax.numpy as jnp
import kagglehub
import numpy as np
import orbax.checkpoint as ocp
import pytest
import requests
from flax import nnx, traverse_util
from safetensors.numpy import load_file, save_file

from aha_lib.model import export, files, layouts, weights
from aha_lib.model.gemma import Gemma
from aha_lib.model.tokenizer import TINY_PATH, Tokenizer
from aha_lib.presets import MODELS, ModelConfig, Settings
from aha_lib.rl import grpo, sampler

DATA = Path(__file__).parents[1] / "data"
GOLDEN = DATA / "golden"
WORDS = DATA / "golden_tokenizer.model"  # the tiny vocabulary, and words up to 160
SIZES = dict(vocab=160, width=48, heads=4, head_dim=16, ff=96, window=8, post_norms=True)
# What the makers of golden's Flax checkpoints were given; their shapes are no preset's.
FLAX = {
    2: ModelConfig(
        layers=4, kv_heads=2, global_every=2, attn_softcap=50.0, final_softcap=30.0, **SIZES
    ),
    3: ModelConfig(layers=8, kv_heads=1, global_every=6, rope_base=1e6, qk_norm=True, **SIZES),
}
# A Gemma 1, as the 7B one is: as many KV heads as heads.
MULTI_HEAD = ModelConfig(
    **(SIZES | dict(heads=2, window=0, post_norms=False)), layers=4, kv_heads=2
)


# Said of what a test restores without saying where to.
pytestmark = pytest.mark.filterwarnings("ignore:Sharding info not provided")


@nnx.jit
def forward(model, tokens):
    positions = jnp.broadcast_to(jnp.arange(tokens.shape[1]), tokens.shape)
    return model.logits(model.hidden(tokens, positions, jnp.ones_like(tokens)))


def assert_golden(model, folder):
    golden = np.load(folder / "golden.npz")
    logits = np.asarray(forward(model, jnp.asarray(golden["tokens"])))
    np.testing.assert_allclose(logits, golden["logits"], rtol=0, atol=1e-4)


def random_model(config, dtype=jnp.float32):
    how = dict(dtype=dtype, param_dtype=dtype)
    model = nnx.eval_shape(lambda: Gemma(config, rngs=nnx.Rngs(0), **how))
    draw = np.random.default_rng(0).normal
    values = jax.tree.map(lambda x: jnp.asarray(draw(size=x.shape), x.dtype), nnx.state(model))
    nnx.update(model, values)
    return model


def assert_same(a, b):
    """Bit for bit, dtype included."""
    a, b = (nnx.to_pure_dict(nnx.state(model)) for model in (a, b))
    same = jax.tree.map(
        lambda x, y: x.dtype == y.dtype and x.tobytes() == y.tobytes(),
        *(jax.tree.map(np.asarray, tree) for tree in (a, b)),
    )
    assert jax.tree.all(same), same


@pytest.fixture
def hf(tmp_path):
    """A folder with golden's Gemma 3 and a tokenizer, to be tampered with."""
    folder = tmp_path / "hf"
    shutil.copytree(GOLDEN / "hf_gemma3", folder)
    shutil.copy(WORDS, folder / "tokenizer.model")
    return folder


def flax_checkpoint(generation, layout, folder):
    """Golden's checkpoint in `folder`, and what its makers wrote down nowhere: its shape."""
    path = shutil.copytree(GOLDEN / f"flax_gemma{generation}" / layout, folder)
    (path / "config.json").write_text(json.dumps(layouts.to_config_json(FLAX[generation])))
    return path


def edit(folder, **changes):
    """Change, or with None remove, entries of config.json."""
    path = folder / "config.json"
    said = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({k: v for k, v in said.items() if v is not None}))


@pytest.mark.parametrize("layout", ["flat_pytree", "nested_standard"])
@pytest.mark.parametrize("generation", [2, 3])
def test_flax_checkpoints(generation, layout, tmp_path):
    folder = flax_checkpoint(generation, layout, tmp_path / "flax")
    model, _, found = weights.load(folder, tokenizer=WORDS)
    assert found == FLAX[generation]
    assert_golden(model, GOLDEN / f"flax_gemma{generation}")


def test_stacked_checkpoint(tmp_path):
    """DeepMind's third layout: layers of equal attention are one tensor, six kinds for Gemma 3."""
    flat = ocp.PyTreeCheckpointer().restore(GOLDEN / "flax_gemma3" / "flat_pytree")
    stacked = {}
    for name, tensors in flat.items():
        if "layer_" not in name:
            stacked[name] = tensors
            continue
        _, layer, leaf = name.split("/", 2)
        kind = int(layer.removeprefix("layer_")) % 6
        where = f"transformer/stacked_layers/attention_type_{kind}/{leaf}"
        for end, x in tensors.items():  # layers come in order: 0, 1, …
            rows = [*stacked.get(where, {}).get(end, []), x]
            stacked.setdefault(where, {})[end] = rows
    stacked = {
        k: {e: np.stack(x) if isinstance(x, list) else x for e, x in v.items()}
        for k, v in stacked.items()
    }
    ocp.PyTreeCheckpointer().save(tmp_path / "ckpt", stacked)
    (tmp_path / "config.json").write_text(json.dumps(layouts.to_config_json(FLAX[3])))
    model, _, _ = weights.load(tmp_path, tokenizer=WORDS)
    assert_golden(model, GOLDEN / "flax_gemma3")


def test_shards_with_an_index(hf):
    tensors = load_file(hf / "model.safetensors")
    (hf / "model.safetensors").unlink()
    names, home = [*tensors], {}
    for i, part in enumerate((names[::2], names[1::2]), 1):
        file = f"model-0000{i}-of-00002.safetensors"
        save_file({name: tensors[name] for name in part}, hf / file)
        home |= dict.fromkeys(part, file)
    (hf / "model.safetensors.index.json").write_text(json.dumps({"weight_map": home}))
    model, _, _ = weights.load(hf)
    assert_golden(model, hf)
    (hf / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match="lacks model-00002-of-00002.safetensors"):
        weights.load(hf)


@pytest.mark.parametrize("prefix", ["language_model.model.", "model.language_model."])
def test_text_part_of_a_multimodal_checkpoint(hf, prefix):
    tensors = load_file(hf / "model.safetensors")
    tensors = {name.replace("model.", prefix, 1): x for name, x in tensors.items()}
    tower = "vision_tower.vision_model.encoder.layers.0.self_attn.q_proj.weight"
    tensors |= {tower: np.ones((5, 5), np.float32), "multi_modal_projector.w": np.ones(3)}
    save_file(tensors, hf / "model.safetensors")
    said = json.loads((hf / "config.json").read_text())
    (hf / "config.json").write_text(json.dumps({"model_type": "gemma3", "text_config": said}))
    model, _, _ = weights.load(hf)
    assert_golden(model, hf)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("source", ["hf_gemma1", "hf_gemma2", "hf_gemma3", "multi-head"])
def test_round_trips_are_exact(source, dtype, tmp_path):
    how = dict(tokenizer=WORDS, param_dtype=dtype)
    if source == "multi-head":
        model = random_model(MULTI_HEAD, dtype)
    else:
        model, _, _ = weights.load(GOLDEN / source, **how)
    config = model.config
    export.save_hf(model, tmp_path / "hf")
    export.save_kaggle(model, tmp_path / "kaggle")
    again, _, found = weights.load(tmp_path / "hf", **how)
    assert found == config
    assert_same(model, again)
    again, _, found = weights.load(tmp_path / "kaggle", **how)
    assert found == config
    assert_same(model, again)


def test_kaggle_layout_is_the_published_one(tmp_path):
    """Names, shapes and numbers of golden's flat checkpoint come out as they went in."""
    for generation in FLAX:
        source = flax_checkpoint(generation, "flat_pytree", tmp_path / f"flax{generation}")
        model, _, _ = weights.load(source, tokenizer=WORDS)
        export.save_kaggle(model, tmp_path / str(generation))
        before, after = (
            traverse_util.flatten_dict(ocp.PyTreeCheckpointer().restore(path))
            for path in (source, tmp_path / str(generation) / "weights")
        )
        assert before.keys() == after.keys()
        for name, x in before.items():
            np.testing.assert_array_equal(x, after[name])


def test_tiny_by_name_and_tokenizer_saved(tmp_path):
    model, tokenizer, config = weights.load("tiny")
    assert config == MODELS["tiny"] and tokenizer.vocab_size == config.vocab
    export.save_kaggle(model, tmp_path, tokenizer)
    again, words, found = weights.load(tmp_path)  # a preset's shapes, so no config is needed
    assert found == config and words.encode("20 + 4") == tokenizer.encode("20 + 4")
    assert_same(model, again)


SHARDED = """
import os
os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=8"
import sys
from pathlib import Path
import jax, jax.numpy as jnp, numpy as np
from flax import nnx
from aha_lib import devices
from aha_lib.model import weights
golden, kaggle = map(Path, sys.argv[1:])
words = golden.parent / "golden_tokenizer.model"
mesh = devices.make_mesh(tp=2)
for folder in (golden / "hf_gemma2", kaggle):
    model, _, _ = weights.load(folder, tokenizer=words, mesh=mesh)
    want = jax.tree.leaves(devices.shardings(model, mesh))
    have = jax.tree.leaves(nnx.state(model))
    assert [x.sharding.spec for x in have] == [s.spec for s in want], have
    assert len({s.data.shape for s in model.layers.gate.addressable_shards}) == 1
    shard = model.layers.gate.addressable_shards[0].data
    assert shard.size * 8 == model.layers.gate.size
    data = np.load(golden / "hf_gemma2" / "golden.npz")
    tokens = jnp.asarray(data["tokens"])
    positions = jnp.broadcast_to(jnp.arange(24), tokens.shape)
    logits = nnx.jit(lambda m: m.logits(m.hidden(tokens, positions, jnp.ones_like(tokens))))(model)
    assert np.abs(logits - data["logits"]).max() < 1e-4
"""


@pytest.mark.slow
def test_shardings_on_eight_devices(tmp_path):
    model, _, _ = weights.load(GOLDEN / "hf_gemma2", tokenizer=WORDS)
    export.save_kaggle(model, tmp_path)
    command = [sys.executable, "-c", SHARDED, str(GOLDEN), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=DATA.parent.parent)
    assert done.returncode == 0, done.stderr


# What transformers 4 wrote for the published models, as far as it describes their shape.
PUBLISHED = {
    "gemma-2b": dict(
        model_type="gemma",
        head_dim=256,
        hidden_size=2048,
        intermediate_size=16384,
        num_attention_heads=8,
        num_hidden_layers=18,
        num_key_value_heads=1,
        rope_theta=10000.0,
        rms_norm_eps=1e-6,
        vocab_size=256_128,
    ),
    "gemma2-2b": dict(
        model_type="gemma2",
        attn_logit_softcapping=50.0,
        head_dim=256,
        final_logit_softcapping=30.0,
        hidden_size=2304,
        intermediate_size=9216,
        num_attention_heads=8,
        num_hidden_layers=26,
        num_key_value_heads=4,
        query_pre_attn_scalar=256,
        sliding_window=4096,
        vocab_size=256_128,
    ),
    "gemma3-1b": dict(
        model_type="gemma3_text",
        head_dim=256,
        hidden_size=1152,
        intermediate_size=6912,
        num_attention_heads=4,
        num_hidden_layers=26,
        num_key_value_heads=1,
        query_pre_attn_scalar=256,
        sliding_window=512,
        rope_local_base_freq=10000,
        rope_theta=1000000,
        sliding_window_pattern=6,
        attn_logit_softcapping=None,
        rope_scaling=None,
        vocab_size=262_144,
    ),
    "gemma3-4b": dict(
        model_type="gemma3",
        text_config=dict(
            model_type="gemma3_text",
            hidden_size=2560,
            intermediate_size=10240,
            num_hidden_layers=34,
            rope_scaling={"factor": 8.0, "rope_type": "linear"},
            sliding_window=1024,
        ),
    ),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_configurations(name, tmp_path):
    """The preset, found by the shapes alone and with a config.json of the old spelling."""
    config = MODELS[name]
    embed = jax.ShapeDtypeStruct((config.vocab, config.width), jnp.bfloat16)
    leaves = layouts.layer_tensors(config, flax=False)
    layers = [weights.LayerNames([i], dict.fromkeys(leaves, "")) for i in range(config.layers)]
    found = files.CheckpointFiles(tmp_path, False, {"embed": embed}, read=None)
    checkpoint = weights.Checkpoint(found, "embed", "norm", layers)
    assert weights.recognise(checkpoint, [tmp_path]) == config
    (tmp_path / "config.json").write_text(json.dumps(PUBLISHED[name]))
    assert weights.recognise(checkpoint, [tmp_path]) == config


def truncated(folder):
    data = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(data[: len(data) // 2])


def without(name):
    def tamper(folder):
        tensors = load_file(folder / "model.safetensors")
        del tensors[name]
        save_file(tensors, folder / "model.safetensors")

    return tamper


def integers(folder):
    tensors = load_file(folder / "model.safetensors")
    tensors["model.layers.0.mlp.up_proj.weight"] = np.ones((96, 48), np.int8)
    save_file(tensors, folder / "model.safetensors")


def llama(folder):
    edit(folder, model_type="llama")


def sizes(folder):
    edit(folder, intermediate_size=128)


def pattern(folder):
    edit(folder, layer_types=["full_attention"] + ["sliding_attention"] * 7)


def other_tokenizer(folder):
    tensors = load_file(folder / "model.safetensors")
    table = tensors["model.embed_tokens.weight"]
    tensors["model.embed_tokens.weight"] = np.concatenate([table, table])
    save_file(tensors, folder / "model.safetensors")
    edit(folder, vocab_size=320)


def own_head(folder):
    tensors = load_file(folder / "model.safetensors")
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"] + 1
    save_file(tensors, folder / "model.safetensors")


def untied(folder):
    edit(folder, tie_word_embeddings=False)


def two_homes(folder):
    """What `save_hf` of old left in a folder that had a checkpoint in several files."""
    tensors = load_file(folder / "model.safetensors")
    old = {name: x + 1 for name, x in tensors.items() if "layers.0" in name}
    save_file(old, folder / "model-00001-of-00002.safetensors")


def not_finite(folder):
    tensors = load_file(folder / "model.safetensors")
    tensors["model.layers.2.mlp.up_proj.weight"][3, 4] = np.nan
    save_file(tensors, folder / "model.safetensors")


def list_for_a_config(folder):
    (folder / "config.json").write_text("[1, 2]")


def no_json(folder):
    (folder / "config.json").write_text("{")


def index_without_a_map(folder):
    (folder / "model.safetensors.index.json").write_text('{"metadata": {}}')


def no_kv_heads(folder):
    edit(folder, num_key_value_heads=0)


def yarn(folder):
    edit(folder, rope_parameters={"full_attention": {"rope_type": "yarn", "factor": 2.0}})


def lfs_pointer(name):
    def tamper(folder):
        pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 12\n"
        (folder / name).write_text(pointer)

    return tamper


def empty(name):
    def tamper(folder):
        (folder / name).write_bytes(b"")

    return tamper


def junk_tokenizer(folder):
    (folder / "tokenizer.model").write_bytes(b"<html>404</html>")


def half_an_orbax(part):
    def tamper(folder):
        shutil.rmtree(folder)
        flax_checkpoint(3, "flat_pytree", folder)
        shutil.copy(WORDS, folder / "tokenizer.model")
        for path in sorted(folder.glob(part)):
            path.unlink()

    return tamper


def no_tokenizer(folder):
    (folder / "tokenizer.model").unlink()


def undescribed(folder):
    (folder / "config.json").unlink()


def orbax_without_metadata(folder):
    shutil.rmtree(folder)
    shutil.copytree(GOLDEN / "flax_gemma3" / "flat_pytree", folder)
    (folder / "_METADATA").unlink()


@pytest.mark.parametrize(
    "tamper, error, message",
    [
        (truncated, ValueError, "model.safetensors is damaged or cut off"),
        (without("model.layers.3.mlp.up_proj.weight"), ValueError, "mlp.up_proj"),
        (without("model.embed_tokens.weight"), ValueError, "no embedding, or no layers"),
        (without("model.norm.weight"), ValueError, "lacks model.norm.weight"),
        (integers, ValueError, "up_proj.weight in .* is quantised"),
        (llama, ValueError, "model_type is llama: supported are Gemma 1, 2 and 3"),
        (sizes, ValueError, r"_proj.weight in .* is \(.*\), not \(.*\) as configured"),
        (pattern, ValueError, "layer_types"),
        (other_tokenizer, ValueError, "160 pieces, the embedding 320 rows"),
        (no_tokenizer, FileNotFoundError, "no tokenizer.model"),
        (undescribed, ValueError, "none of tiny, small, look-up, .* so put a config.json there"),
        (orbax_without_metadata, FileNotFoundError, "with its _METADATA, not 0"),
        (shutil.rmtree, FileNotFoundError, "is no folder, no preset and no handle"),
        (own_head, ValueError, "lm_head.weight in .* is not the embedding"),
        (untied, ValueError, "config.json cannot be used: tie_word_embeddings is False"),
        (two_homes, ValueError, "twice, in model-00001-of-00002.safetensors and in model.safe"),
        (not_finite, ValueError, "up holds NaN or infinity"),
        (list_for_a_config, ValueError, "config.json holds a list, not an object"),
        (no_json, ValueError, "config.json is damaged, it is no JSON"),
        (index_without_a_map, ValueError, "index.json has no weight_map"),
        (no_kv_heads, ValueError, "config.json cannot be used: kv_heads is 0"),
        (yarn, ValueError, "config.json cannot be used: RoPE is scaled by 'yarn'"),
        (lfs_pointer("model.safetensors"), ValueError, "model.safetensors is a Git LFS pointer"),
        (lfs_pointer("tokenizer.model"), ValueError, "tokenizer.model is a Git LFS pointer"),
        (lfs_pointer("config.json"), ValueError, "config.json is a Git LFS pointer"),
        (empty("tokenizer.model"), ValueError, "tokenizer.model cannot be used: .* is empty"),
        (empty("model.safetensors"), ValueError, "model.safetensors is damaged or cut off"),
        (junk_tokenizer, ValueError, "tokenizer.model cannot be used: .* no SentencePiece model"),
        (half_an_orbax("manifest.ocdbt"), ValueError, "hf cannot be read .* download it again"),
        (half_an_orbax("ocdbt.process_0/d/*"), ValueError, "hf cannot be read .* again"),
        (half_an_orbax("d/*"), ValueError, "hf cannot be read .* download it again"),
    ],
)
def test_bad_checkpoints(hf, tamper, error, message):
    tamper(hf)
    with pytest.raises(error, match=message):
        weights.load(hf)


def test_a_bucket_that_needs_a_package():
    """gcsfs is not installed; where it is, there is no such bucket."""
    with pytest.raises((ValueError, OSError), match="gs://nowhere/gemma"):
        weights.load("gs://nowhere/gemma")


def test_a_head_that_is_the_embedding_is_taken(hf):
    tensors = load_file(hf / "model.safetensors")
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].copy()
    save_file(tensors, hf / "model.safetensors")
    assert_golden(weights.load(hf)[0], hf)


def http(status):
    response = requests.Response()
    response.status_code = status
    request = requests.Request("GET", "https://kaggle.com", headers={"Authorization": TOKEN})
    response.request = request.prepare()
    return kagglehub.exceptions.KaggleApiHTTPError(f"{status} {TOKEN}", response=response)


TOKEN = "Bearer KGAT_0123456789"
HANDLE = "google/gemma-3/flax/gemma3-1b"


@pytest.mark.parametrize(
    "error, known, message",
    [
        (http(403), True, "Accept Gemma's licence at https://www.kaggle.com/models/google/gemma-3"),
        (http(403), False, "Kaggle needs your token"),
        (http(401), True, "Kaggle needs your token"),
        (kagglehub.exceptions.UnauthenticatedError(TOKEN), False, "Kaggle needs your token"),
        (http(404), True, f"Kaggle has no model {HANDLE}"),
        (requests.ConnectionError(TOKEN), True, "kaggle.com does not answer"),
        (requests.ReadTimeout(TOKEN), True, "kaggle.com does not answer"),
        (OSError(28, TOKEN), True, "The disk is full"),
        (kagglehub.exceptions.DataCorruptionError(TOKEN), True, "broke off .* call again"),
    ],
)
def test_downloads_that_fail(error, known, message, monkeypatch):
    def refuse(handle):
        assert handle == HANDLE
        raise error

    monkeypatch.setattr(kagglehub, "model_download", refuse)
    monkeypatch.setattr(kagglehub.config, "get_kaggle_credentials", lambda: known or None)
    with pytest.raises(OSError, match=message) as caught:
        weights.load("gemma3-1b")
    assert TOKEN not in "".join(traceback.format_exception(caught.value))
    assert str(caught.value).count(". ") == 0, "one sentence"


def test_half_a_download(tmp_path, monkeypatch):
    """An archive's layout (weights in a folder, the tokenizer beside it), whole and not."""
    flax_checkpoint(3, "flat_pytree", tmp_path / "gemma3-1b")
    shutil.copy(WORDS, tmp_path / "tokenizer.model")
    monkeypatch.setattr(kagglehub, "model_download", lambda handle: str(tmp_path))
    model, _, _ = weights.load(HANDLE)
    assert_golden(model, GOLDEN / "flax_gemma3")
    (tmp_path / "gemma3-1b" / "_METADATA").unlink()
    with pytest.raises(FileNotFoundError, match="_METADATA"):
        weights.load(HANDLE)


@pytest.mark.parametrize("name", ["hf_gemma1", "hf_gemma2", "hf_gemma3"])
def test_transformers_opens_what_is_saved(name, tmp_path):
    transformers = pytest.importorskip("transformers")
    torch = pytest.importorskip("torch")
    model, _, _ = weights.load(GOLDEN / name, tokenizer=WORDS)
    export.save_hf(model, tmp_path)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path, attn_implementation="eager"
    )
    golden = np.load(GOLDEN / name / "golden.npz")
    logits = theirs(torch.tensor(golden["tokens"])).logits.detach().numpy()
    np.testing.assert_allclose(logits, golden["logits"], rtol=0, atol=1e-4)


@pytest.fixture(scope="module")
def real():
    folder = os.environ.get("AHA_GEMMA_DIR")
    if not folder:
        pytest.skip("AHA_GEMMA_DIR is not set: the folder of a real Gemma 3 270M")
    return *weights.load(folder)[:2], json.loads((DATA / "gemma3_270m.json").read_text())["cases"]


def log_probabilities(model, ids):
    logits = np.asarray(forward(model, jnp.array([ids]))[0], np.float64)
    logits -= logits.max(-1, keepdims=True)
    return logits - np.log(np.exp(logits).sum(-1, keepdims=True))


def greedy(model, ids, count):
    extend = nnx.jit(lambda model, *inputs: model.extend(*inputs))
    cache, written, new = model.empty_cache(1, len(ids) + count), [*ids], ids
    while len(written) < len(ids) + count:
        slot = len(written) - len(new)
        at = jnp.array([range(slot, len(written))])
        hidden, cache = extend(model, jnp.array([new]), at, cache, slot)
        new = [int(model.logits(hidden[0, -1:]).argmax())]
        written += new
    return written[len(ids) :]


def test_real_gemma(real):
    """Token ids, log-probabilities (also past the sliding window) and greedy text."""
    model, tokenizer, cases = real
    for case in cases:
        ids = case["token_ids"]
        assert len(ids) == 640 or tokenizer.encode(case["prompt"]) == ids
        logs = log_probabilities(model, ids)
        found = logs[np.arange(len(ids) - 1), ids[1:]]
        np.testing.assert_allclose(found, case["token_logprobs"], rtol=0, atol=2e-3)
        if "greedy_ids" in case:
            assert greedy(model, ids, len(case["greedy_ids"])) == case["greedy_ids"]
            assert tokenizer.decode(case["greedy_ids"]) == case["greedy_text"]


def test_real_gemma_in_kaggles_layout(real, tmp_path):
    model, tokenizer, cases = real
    export.save_kaggle(model, tmp_path, tokenizer)
    again, words, config = weights.load(tmp_path)
    assert config == MODELS["gemma3-270m"] and words.vocab_size == tokenizer.vocab_size
    assert_same(model, again)


@pytest.mark.slow
def test_rows_of_the_embedding_without_a_piece_are_neither_sampled_nor_trained(tmp_path):
    words = Tokenizer.load(TINY_PATH)
    shape = dict(layers=2, width=32, heads=2, head_dim=16, ff=48, window=16)
    config = dataclasses.replace(MODELS["tiny"], **shape, vocab=words.vocab_size + 100)
    export.save_hf(Gemma(config, rngs=nnx.Rngs(0)), tmp_path, words)
    model, words, config = weights.load(tmp_path)
    prompts, valid = sampler.pad_left([words.encode("20 16 4 = 40 :")] * 2, 8, words.pad_id)
    how = dict(group=16, length=16, stop_ids=words.stop_ids, pad_id=words.pad_id)
    for temperature in (1.0, 0.0):
        out = sampler.sample(
            model,
            prompts,
            valid,
            jax.random.key(0),
            sampler.Sampling(temperature=temperature, **how),
        )
        words.decode(out.tokens[out.mask])
    out = sampler.sample(model, prompts, valid, jax.random.key(0), sampler.Sampling(**how))
    read = [np.repeat(x, 16, axis=0) for x in (prompts, valid)]
    gain = np.linspace(-1, 1, 32, dtype=np.float32)
    arrays = (*read, out.tokens, out.mask, out.logprobs, gain)
    batch = grpo.Batch(*map(jnp.asarray, arrays))

    def loss(model):
        return grpo.loss(model, None, batch, Settings(entropy_bonus=0.1))[0]

    logs, entropy = grpo.completion_logprobs(model, batch, 1.0)
    np.testing.assert_allclose(np.where(out.mask, logs, 0), out.logprobs, atol=1e-5)
    assert np.isfinite(entropy).all() and (entropy <= np.log(words.vocab_size)).all()
    gradient = nnx.to_pure_dict(nnx.grad(loss)(model))
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(gradient))
    assert (gradient["embed"][words.vocab_size :] == 0).all() and (gradient["embed"] != 0).any()
