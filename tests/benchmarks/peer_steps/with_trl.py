"""TRL on the two works of ../peers.py: a JSON line a step. Run by its own environment's Python.

`python with_trl.py fixed|real STEPS SEED`, with this repository on PYTHONPATH, for its puzzles, its
reward and its tiny base. No gradient checkpointing, a whole batch at once: the fastest found.
"""

import json
import random
import sys
import tempfile
import time

from datasets import Dataset
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import Gemma3ForCausalLM, PreTrainedTokenizerFast
from trl import GRPOConfig, GRPOTrainer

from aha_lib.model.tokenizer import TINY_PATH, TINY_WORDS
from aha_lib.presets import PUZZLES, SETTINGS
from aha_lib.tasks import countdown

work, steps, seed = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
s, length = SETTINGS["tiny"], 120 if work == "fixed" else SETTINGS["tiny"].completion_len
words = ["<pad>", "<eos>", "<bos>", "<unk>", *TINY_WORDS]
pieces = Tokenizer(models.WordLevel({w: i for i, w in enumerate(words)}, unk_token="<unk>"))
pieces.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
tokenizer = PreTrainedTokenizerFast(
    tokenizer_object=pieces,
    pad_token="<pad>",
    eos_token="<eos>",
    bos_token="<bos>",
    unk_token="<unk>",
    padding_side="left",
)
model = Gemma3ForCausalLM.from_pretrained(TINY_PATH.parent, dtype="float32")
die, seen = random.Random(seed), {}


def reward(completions, numbers, target, **_):
    if work == "fixed":
        return [die.random() for _ in completions]
    rewards = [
        countdown.reward(text, countdown.Puzzle(tuple(n), t)).value
        for text, n, t in zip(completions, numbers, target, strict=True)
    ]
    seen["accuracy"] = sum(x == 1 for x in rewards) / len(rewards)
    seen["length"] = sum(len(text.split()) for text in completions) / len(completions)
    return rewards


count = s.prompts * (steps + 1)
puzzles = [countdown.generate(seed, i, PUZZLES[s.puzzles]) for i in range(count)]
rows = [
    {"prompt": "<bos> " + countdown.prompt(p), "numbers": list(p.numbers), "target": p.target}
    for p in puzzles
]
settings = GRPOConfig(
    output_dir=tempfile.mkdtemp(),
    per_device_train_batch_size=s.prompts * s.group,
    num_generations=s.group,
    max_completion_length=length,
    shuffle_dataset=False,
    gradient_accumulation_steps=1,
    gradient_checkpointing=False,
    num_iterations=s.updates,
    learning_rate=s.learning_rate,
    lr_scheduler_type="constant_with_warmup",
    warmup_steps=s.warmup,
    adam_beta2=0.95,
    beta=s.kl,
    temperature=s.temperature,
    top_k=0,
    epsilon=s.clip_low,
    epsilon_high=s.clip_high,
    loss_type="dapo",
    max_grad_norm=s.max_grad_norm,
    seed=seed,
    max_steps=steps,
    logging_steps=1000,
    report_to=[],
    bf16=False,
    use_cpu=True,
    save_strategy="no",
    disable_tqdm=True,
    generation_kwargs={"min_new_tokens": length} if work == "fixed" else None,  # nothing ends early
)
trainer = GRPOTrainer(
    model=model,
    reward_funcs=reward,
    args=settings,
    train_dataset=Dataset.from_list(rows),
    processing_class=tokenizer,
)
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
    print(
        json.dumps(
            {
                "step": whole,
                "sample": sample,
                "update": whole - sample,
                "loop": now - clock["began"],
                "tokens": clock["tokens"],
                **seen,
            }
        ),
        flush=True,
    )
    clock["last"] = now
    return out


trainer._generate_and_score_completions, trainer.training_step = timed_generate, timed_step
trainer.train()
