"""What `export.save_hf` writes, opened by transformers 4 and 5, in a process of their own.

Each has a Python of its own: that of AHA_TRANSFORMERS4 or AHA_TRANSFORMERS5, or one that is made in
.venv-transformers4 and .venv-transformers5 beside the project (1.2 GB each, some minutes, once).
"""

import dataclasses
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import here
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from stand_in import gemma_like_tokenizer

from aha_lib.model import export, lora, vocabulary
from aha_lib.model.tokenizer import Tokenizer, tiny_model
from aha_lib.presets import MODELS, PRETRAINING
from aha_lib.tasks import corpus

pytestmark = pytest.mark.slow

PROJECT = Path(__file__).resolve().parents[2]
VERSIONS = {"4": "transformers<5", "5": "transformers>=5"}
COLD = PRETRAINING["gemma3-270m-cpu"]
DOCUMENTS = ["".join(text for text, _ in corpus.document(COLD, i)) for i in range(200)]
TINY = "20 16 4 = 40 : 20 - 16 = 4 , 4 + 4 = 8 no foo bar 20 + 4 = 24 , 24 + 16 = 40 yes"
CHATS = [
    [("user", " How? ")],
    [("system", "Be short."), ("user", "from 3"), ("model", "yes"), ("user", "no\n")],
    [("user", "4"), ("assistant", "44 "), ("user", "444")],
]
WIDTH, LENGTH = 128, 16
SMALL = dict(layers=4, width=48, heads=3, kv_heads=1, head_dim=16, ff=64)
SHAPES = {
    # 4B divides its positions by 8, and its head size is not what queries are scaled by.
    "gemma3": dict(SMALL, window=12, global_every=3, query_scalar=24.0),
    "gemma2": dict(SMALL, window=12),
    "gemma1": SMALL,
}
PRESETS = {"gemma3": "gemma3-4b", "gemma2": "gemma2-2b", "gemma1": "gemma-2b"}


def python_with(version: str) -> Path:
    """A Python that has torch and this transformers; the first time it is made."""
    given = os.environ.get(f"AHA_TRANSFORMERS{version}")
    if given:
        return Path(given)
    folder = PROJECT / f".venv-transformers{version}"
    python = folder / "bin" / "python"
    if not (folder / "whole").exists():
        subprocess.run([sys.executable, "-m", "venv", folder], check=True)
        # 2.13.0: a build for CPUs where the index has one; others work as well.
        wanted = ["torch", VERSIONS[version], "numpy", "safetensors", "jinja2"]
        subprocess.run([python, "-m", "pip", "install", "-q", *wanted], check=True)
        (folder / "whole").touch()
    return python


def shaped(generation: str, words: Tokenizer, padding: int = 0):
    """A random model that never writes bytes: half a character is spelled differently elsewhere."""
    preset = MODELS[PRESETS[generation]]
    shape = SHAPES[generation] | dict(vocab=words.vocab_size + padding, padding=padding)
    model = here.random_model(dataclasses.replace(preset, **shape))
    pieces = words.proto().pieces
    unwritten = [i for i, piece in enumerate(pieces) if re.match("<0x|<unk>|<pad>", piece.piece)]
    model.embed[...] = model.embed[...].at[np.array(unwritten)].multiply(0.01)
    return model


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """Of each model that leaves: its folder, model, tokenizer, texts, prompts and chats."""
    words = gemma_like_tokenizer([*DOCUMENTS, "from user model to"], 340)
    whole = shaped("gemma3", words)
    used = {token for text in DOCUMENTS for token in words.encode(text)}
    ids = sorted(used.union(words.special_ids))
    adapted = lora.off(whole)
    lora.add(adapted, 2, rngs=nnx.Rngs(0))
    for name in ("q", "down"):
        b = getattr(adapted.layers, f"{name}_b")
        b[...] = b[...] + jnp.asarray(np.random.default_rng(1).normal(size=b.shape) * 0.3, b.dtype)
    tiny = Tokenizer(tiny_model())
    models = {
        "whole": (whole, words),
        "cut": (vocabulary.cut(whole, ids), words.subset(ids)),
        "adapters merged": (lora.merge(adapted), words),
        "tiny": (shaped("gemma3", tiny), tiny),
        "gemma 2, padded": (shaped("gemma2", words, 100), words),
        "gemma 1": (shaped("gemma1", words), words),
    }
    out = {}
    for name, (model, tokenizer) in models.items():
        folder = tmp_path_factory.mktemp(name.split()[0])
        export.save_hf(model, folder, tokenizer)
        texts = [TINY] if name == "tiny" else sorted(DOCUMENTS, key=len)[::40]
        out[name] = {
            "folder": folder,
            "model": model,
            "tokenizer": tokenizer,
            "texts": [*texts, " yes", " no from 12"],
            "prompts": ["20 16 4 = 40 :"] if name == "tiny" else ["20 16 4=40:", "7 3 5 = 9"],
            "chats": CHATS if tokenizer.has_turns else [],
        }
    return out


@pytest.fixture(scope="module", params=VERSIONS)
def answers(request, exported, tmp_path_factory):
    """What one transformers makes of all folders, and its version."""
    questions = []
    for asked in exported.values():
        chats = [[{"role": r, "content": text} for r, text in turns] for turns in asked["chats"]]
        question = {"folder": str(asked["folder"]), "chats": chats, "length": LENGTH}
        questions.append(question | {key: asked[key] for key in ("texts", "prompts")})
    found = here.ask(python_with(request.param), questions, tmp_path_factory.mktemp("asked"))
    assert all(answer["version"].startswith(request.param) for answer in found)
    return dict(zip(exported, found, strict=True))


MODELS_THAT_LEAVE = ["whole", "cut", "adapters merged", "tiny", "gemma 2, padded", "gemma 1"]


@pytest.mark.parametrize("name", MODELS_THAT_LEAVE)
def test_ids_probabilities_and_text_are_ours(name, answers, exported):
    asked, theirs = exported[name], answers[name]
    model, tokenizer = asked["model"], asked["tokenizer"]
    for text, other in zip(asked["texts"], theirs["texts"], strict=True):
        ours = here.score(model, tokenizer, text, WIDTH)
        assert other["ids"] == ours["ids"] and ours["ids"][0] == tokenizer.bos_id
        np.testing.assert_allclose(other["logprobs"], ours["logprobs"], rtol=0, atol=2e-4)
    written = [here.write(model, tokenizer, text, LENGTH, WIDTH) for text in asked["prompts"]]
    assert theirs["greedy"] == written
    stops = sorted(tokenizer.stop_ids)
    assert theirs["stops"] == (stops if len(stops) > 1 else stops[0])
    for turns, ids in zip(asked["chats"], theirs["chats"], strict=True):
        assert ids == tokenizer.chat(turns)


def test_what_each_has_is_tried(exported):
    """Else the test above would pass for a tokenizer without turns, or a model without scaling."""
    config = json.loads((exported["whole"]["folder"] / "config.json").read_text())
    assert config["rope_scaling"]["factor"] == 8.0 and config["query_pre_attn_scalar"] == 24
    assert exported["whole"]["chats"] and not exported["cut"]["chats"]
    assert exported["gemma 2, padded"]["model"].config.padding == 100
