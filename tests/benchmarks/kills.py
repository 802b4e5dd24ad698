"""SIGKILL a run again and again, go on, and compare its end with that of an undisturbed run.

    python tests/benchmarks/kills.py --kills 200

The first kills come before each of the writes of a step in turn, then one at a random moment and
one as soon as a checkpoint is being written, by turns. A very small model of random weights; each
process is forked from one that has imported everything.
"""

import argparse
import dataclasses
import hashlib
import itertools
import json
import multiprocessing
import os
import random
import signal
import tempfile
import time
from pathlib import Path

WRITES = 12  # kills before a write: some steps' worth
TIMED = "seconds", "per_second"


def settings(model: Path):
    from aha_lib.presets import Settings

    return Settings(
        model=str(model),
        prompts=2,
        group=4,
        completion_len=3,
        micro_batch=8,
        steps=12,
        warmup=1,
        eval_every=3,
        eval_puzzles=2,
        pass_k=1,
        checkpoint_every=1,
        learning_rate=1e-2,
    )


def make_model(folder: Path) -> None:
    """One layer of width 16 over the tiny vocabulary, with random weights."""
    from flax import nnx

    from aha_lib.model import export
    from aha_lib.model.gemma import Gemma
    from aha_lib.model.tokenizer import Tokenizer, tiny_model
    from aha_lib.presets import MODELS

    shape = dict(layers=1, width=16, heads=1, head_dim=16, ff=16, window=16, global_every=1)
    model = Gemma(dataclasses.replace(MODELS["tiny"], **shape), rngs=nnx.Rngs(0))
    for name in ("post_attn_norm", "post_ff_norm"):
        norm = getattr(model.layers, name)
        norm[...] = norm[...] + 1.0
    export.save_hf(model, folder, Tokenizer(tiny_model()))


def go_on(model: Path, out: Path, deadly: int = -1) -> None:
    """Begin or resume the run; die before write number `deadly` of this process."""
    import jax

    from aha_lib.run import checkpoints, folder, train
    from aha_lib.tasks import countdown

    # What is compiled is kept: every process meets the same few programs.
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_compilation_cache_dir", str(model.parent / "cache"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    writes = itertools.count()

    def watched(function):
        def write(*args):
            if next(writes) == deadly:
                os.kill(os.getpid(), signal.SIGKILL)
            return function(*args)

        return write

    for module, name in ((folder, "append"), (checkpoints, "save"), (folder, "write")):
        setattr(module, name, watched(getattr(module, name)))
    # Rewards that a random model earns.
    countdown.reward = lambda text, _, **__: countdown.Reward(sum(map(ord, text)) % 3 / 2, "", "")
    for _ in train.train(settings(model), out):
        pass


def unfinished(out: Path) -> set[str]:
    """Checkpoints that are being written, or were when the run was killed."""
    return {path.name for path in (out / "checkpoints").glob("*tmp*")}


def end(out: Path):
    """All that a run leaves: rows without times, texts, and a hash of its last checkpoint."""
    import jax
    import numpy as np
    import orbax.checkpoint as ocp

    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    rows = [{k: v for k, v in row.items() if not k.endswith(TIMED)} for row in rows]
    with ocp.CheckpointManager(out / "checkpoints") as manager:
        step = manager.latest_step()
        leaves = jax.tree.leaves(manager.restore(step, args=ocp.args.StandardRestore()))
    bits = hashlib.sha256(b"".join(np.asarray(x).tobytes() for x in leaves)).hexdigest()
    return rows, (out / "rollouts.jsonl").read_text(), step, bits


def kills(count: int, where: Path, seed: int = 0) -> int:
    """Kill runs `count` times in all, each to its end; gives how many were being saved then.

    AssertionError where an end is another than the undisturbed run's.
    """
    context, dice = multiprocessing.get_context("forkserver"), random.Random(seed)
    context.set_forkserver_preload(["aha_lib.run.train"])
    make_model(where / "model")

    def process(out, deadly=-1):
        started = context.Process(target=go_on, args=(where / "model", out, deadly))
        started.start()
        return started

    process(where / "first").join()
    began = time.monotonic()
    process(where / "whole").join()
    usual, whole, done, struck = time.monotonic() - began, end(where / "whole"), 0, 0
    assert end(where / "first") == whole, "the run itself does not repeat"
    for run in itertools.count():
        out = where / f"run{run}"
        while done < count:
            left = unfinished(out)  # by the kill before
            job = process(out, done if done < WRITES else -1)
            moment = time.monotonic() + dice.uniform(0.2, 1) * usual
            timed, wait = done >= WRITES, done % 2 == 1  # for a moment, or until it is saving
            while timed and job.is_alive() and (wait or time.monotonic() < moment):
                if wait and unfinished(out) - left:
                    break
                time.sleep(0.001)
            if timed:
                struck += bool(unfinished(out) - left)
                job.kill()
            job.join()
            if job.exitcode == 0:
                break  # the run is at its end
            assert job.exitcode == -signal.SIGKILL, job.exitcode
            done += 1
        process(out).join()
        assert end(out) == whole, f"run {run} ended otherwise, after {done} kills"
        print(f"run {run} ended as it should; {done} kills, {struck} during saving", flush=True)
        if done == count:
            return struck


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        struck = kills(args.kills, Path(folder), args.seed)
    print(
        f"{args.kills} kills, {struck} of them during saving: every run ended as the undisturbed "
        "one, to the last bit."
    )


if __name__ == "__main__":
    main()
