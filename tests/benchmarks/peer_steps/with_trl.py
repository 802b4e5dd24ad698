"""TRL on the two works of ../peers.py: a JSON line a step. Run by its own environment's Python.

`python with_trl.py fixed|real STEPS SEED`, with this repository on PYTHONPATH, for its puzzles, its
reward and its tiny base. No gradient checkpointing, a whole batch at once: the fastest found.
"""

import json
import random
import sys
import tempfile
import time
from pathlib import Path

from datasets import Dataset
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import Gemma3ForCausalLM, PreTrainedTokenizerFast
from trl import GRPOConfig, GRPOTrainer

import aha_lib
from aha_lib import countdown

work, steps, seed = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
base = Path(aha_lib.__file__).parent / "data/tiny"
ranges = dict(numbers=3, low=1, high=20, target_low=10, target_high=99, bound=100)
words = ["<pad>", "<eos>", "<bos>", "<unk>", *map(str, range(101)), *"+-*/=,:()", "no", "yes",
         "<answer>", "</answer>"]  # fmt: skip
pieces = Tokenizer(models.WordLevel({w: i for i, w in enumerate(words)}, unk_token="<unk>"))
pieces.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
tokenizer = PreTrainedTokenizerFast(
    tokenizer_object=pieces, pad_token="<pad>", eos_token="<eos>", bos_token="<bos>",
    unk_token="<unk>", padding_side="left",
)  # fmt: skip
model = Gemma3ForCausalLM.from_pretrained(base, dtype="float32")
die, seen = random.Random(seed), {}


def reward(completions, numbers, target, **_):
    if work == "fixed":
        return [die.random() for _ in completions]
    rewards = [countdown.reward(text, countdown.Puzzle(tuple(n), t)).value
               for text, n, t in zip(completions, numbers, target, strict=True)]  # fmt: skip
    seen["accuracy"] = sum(x == 1 for x in rewards) / len(rewards)
    seen["length"] = sum(len(text.split()) for text in completions) / len(completions)
    return rewards


puzzles = [countdown.generate(seed, i, **ranges) for i in range(16 * (steps + 1))]
rows = [{"prompt": "<bos> " + countdown.prompt(p), "numbers": list(p.numbers), "target": p.target}
        for p in puzzles]  # fmt: skip
settings = GRPOConfig(
    output_dir=tempfile.mkdtemp(), per_device_train_batch_size=256, num_generations=16,
    max_completion_length=120 if work == "fixed" else 144, shuffle_dataset=False,
    gradient_accumulation_steps=1, gradient_checkpointing=False, num_iterations=1,
    learning_rate=6e-4, lr_scheduler_type="constant_with_warmup", warmup_steps=5, adam_beta2=0.95,
    beta=0.0, temperature=1.0, top_k=0, epsilon=0.2, epsilon_high=0.28, loss_type="dapo",
    max_grad_norm=1.0, seed=seed, max_steps=steps, logging_steps=1000, report_to=[], bf16=False,
    use_cpu=True, save_strategy="no", disable_tqdm=True,
    generation_kwargs={"min_new_tokens": 120} if work == "fixed" else None,  # nothing ends early
)  # fmt: skip
trainer = GRPOTrainer(
    model=model, reward_funcs=reward, args=settings, train_dataset=Dataset.from_list(rows),
    processing_class=tokenizer,
)  # fmt: skip
generate, step = trainer._generate_and_score_completions, trainer.training_step
clock = {"began": time.perf_counter(), "last": time.perf_counter()}


def timed_generate(*args, **kwargs):
    start = time.perf_counter()
    out = generate(*args, **kwargs)
    clock["sample"] = time.perf_counter() - start
    clock["tokens"] = int(out["completion_mask"].sum())
    return out


def timed_step(*args, **kwargs):
    out, now = step(*args, **kwargs), time.perf_counter()
    whole, sample = now - clock["last"], clock["sample"]
    print(json.dumps({"step": whole, "sample": sample, "update": whole - sample,
                      "loop": now - clock["began"], "tokens": clock["tokens"], **seen}),
          flush=True)  # fmt: skip
    clock["last"] = now
    return out


trainer._generate_and_score_completions, trainer.training_step = timed_generate, timed_step
trainer.train()
