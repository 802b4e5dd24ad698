"""What `elsewhere.py` asks of transformers, asked of this package: ids, log-probabilities, text."""

import json
import os
import subprocess
from pathlib import Path

import jax.numpy as jnp
import numpy as np
from flax import nnx

from aha_lib.model.gemma import Gemma, abstract
from aha_lib.model.tokenizer import Tokenizer
from aha_lib.model.weights import parameters_by_name
from aha_lib.presets import ModelConfig

SCRIPT = Path(__file__).with_name("elsewhere.py")


def random_model(config: ModelConfig, dtype=jnp.float32) -> Gemma:
    """A model of random parameters of which NumPy has drawn each: nothing is compiled."""
    model = abstract(config, dtype=dtype, param_dtype=dtype)
    draw = np.random.default_rng(0).normal
    parameters = parameters_by_name(nnx.state(model))
    values = {}
    for name, like in parameters.items():
        scale = like.shape[-1] ** -0.5 if "norm" not in name else 0.3
        values[name] = jnp.asarray(scale * draw(size=like.shape), dtype)
    ends = {name: values.pop(name) for name in ("embed", "final_norm")}
    nnx.update(model, ends | {"layers": values})
    return model


def score(model: Gemma, tokenizer: Tokenizer, text: str, width: int) -> dict:
    ids = tokenizer.encode(text)
    logprobs = _chosen(model, _row(ids, width))[0, : len(ids) - 1]
    return {"ids": ids, "logprobs": logprobs.tolist()}


def write(model: Gemma, tokenizer: Tokenizer, prompt: str, length: int, width: int) -> dict:
    ids = tokenizer.encode(prompt)
    start = len(ids)
    while len(ids) - start < length:
        ids.append(int(_likeliest(model, _row(ids, width), len(ids) - 1)))
        if ids[-1] in tokenizer.stop_ids:
            break
    return {"ids": ids[start:], "text": tokenizer.decode(ids[start:])}


def _row(ids: list[int], width: int):
    """Rows are padded at their end, which no token before sees, so that one program does."""
    row = np.zeros((1, width), np.int32)
    row[0, : len(ids)] = ids
    return jnp.asarray(row)


def _hidden(model, tokens):
    positions = jnp.arange(tokens.shape[1])[None]
    return model.hidden(tokens, positions, jnp.ones_like(tokens))


@nnx.jit
def _chosen(model, tokens):
    """The log-probability of each token after the first."""
    return model.logprobs(_hidden(model, tokens)[:, :-1], tokens[:, 1:])[0]


@nnx.jit
def _likeliest(model, tokens, last):
    """The token that follows number `last` with the highest probability."""
    return model.logits(_hidden(model, tokens)[0, last]).argmax()


def ask(python: str | Path, questions: list[dict], place: Path) -> list[dict]:
    """What transformers in another Python answers to each question; `place` is for the files."""
    request, answer = place / "request.json", place / "answer.json"
    request.write_text(json.dumps(questions))
    env = os.environ | {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_VERBOSITY": "error"}
    env.pop("PYTHONPATH", None)
    command = [str(python), str(SCRIPT), str(request), str(answer)]
    done = subprocess.run(command, capture_output=True, text=True, env=env)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(answer.read_text())
