"""Memory and time of loading and of the first calls: `python tests/benchmarks/load.py SOURCE`.

SOURCE is what weights.load takes. With --kaggle FOLDER the model is also written there in
Kaggle's layout, to be measured in its turn. Linux only: memory is read from /proc.
"""

import argparse
import time
from pathlib import Path

import jax
import jax.numpy as jnp
from flax import nnx

from aha_lib.model import export, weights
from aha_lib.rl import sampler


def memory() -> dict[str, float]:
    """GiB of this process: resident, of it anonymous (not pages of files), and the peak so far."""
    status = dict(line.split(":") for line in Path("/proc/self/status").read_text().splitlines())
    names = {"VmRSS": "resident", "RssAnon": "anonymous", "VmHWM": "peak"}
    return {name: int(status[key].split()[0]) / 2**20 for key, name in names.items()}


def report(what: str, since: float, note: str = "") -> None:
    figures = "  ".join(f"{name} {gib:5.2f}" for name, gib in memory().items())
    print(f"{what:<28} {time.perf_counter() - since:6.1f} s   {figures}   {note}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("source")
    parser.add_argument("--kaggle", metavar="FOLDER")
    parser.add_argument("--param-dtype", default="float32")
    chosen = parser.parse_args()
    print(f"{jax.devices()[0].device_kind} x {jax.device_count()}, GiB of host memory")
    report("imports", time.perf_counter())
    start = time.perf_counter()
    model, tokenizer, config = weights.load(chosen.source, param_dtype=chosen.param_dtype)
    size = sum(x.nbytes for x in jax.tree.leaves(nnx.state(model))) / 2**30
    report("load", start, f"parameters {size:.2f}")

    graph, state = nnx.split(model)
    tokens = jnp.ones((1, 128), int)
    positions = jnp.arange(128)[None]

    @jax.jit
    def forward(state, tokens, positions):
        hidden = nnx.merge(graph, state).hidden(tokens, positions, jnp.ones_like(tokens))
        return nnx.merge(graph, state).logits(hidden[:, -1])

    start = time.perf_counter()
    compiled = forward.lower(state, tokens, positions).compile()
    report("compile a forward pass", start, "1 x 128 tokens")
    start = time.perf_counter()
    jax.block_until_ready(compiled(state, tokens, positions))
    report("run it", start)

    prompts, valid = sampler.pad_left([tokenizer.encode("1 + 1 =")], 16, tokenizer.pad_id)
    for what in ("first call of the sampler", "second call"):
        start = time.perf_counter()
        sampler.sample(
            model,
            prompts,
            valid,
            jax.random.key(0),
            sampler.Sampling(
                group=8, length=16, stages=1, stop_ids={config.vocab - 1}, pad_id=tokenizer.pad_id
            ),
        )
        report(what, start, "8 rows x 16 tokens")
    if chosen.kaggle:
        start = time.perf_counter()
        export.save_kaggle(model, chosen.kaggle, tokenizer)
        report("save in Kaggle's layout", start)


if __name__ == "__main__":
    main()
