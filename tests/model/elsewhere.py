"""What transformers makes of folders that `export.save_hf` has written, in a process of its own.

`PYTHON elsewhere.py REQUEST ANSWER`, by a Python that has torch and transformers and not this
package; both are JSON files, with an object for each `folder`. Of each of its `texts` the answer
has token ids and the log-probability of each after the first (nats), of each of its `prompts` the
greedy ids and text, of its `chats` (lists of messages) the ids.
"""

import json
import sys
from pathlib import Path

import torch
import transformers


def main() -> None:
    request, answer = map(Path, sys.argv[1:])
    answers = [answer_one(**asked) for asked in json.loads(request.read_text())]
    answer.write_text(json.dumps(answers))


def answer_one(folder: str, texts, prompts, chats, length: int) -> dict:
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager")
    return {
        "version": transformers.__version__,
        "dtype": str(model.dtype),
        "stops": model.generation_config.eos_token_id,
        "texts": [score(model, tokenizer, text) for text in texts],
        "greedy": [write(model, tokenizer, text, length) for text in prompts],
        "chats": [chat(tokenizer, messages) for messages in chats],
    }


@torch.no_grad()
def score(model, tokenizer, text: str) -> dict:
    ids = tokenizer(text)["input_ids"]
    logits = model(torch.tensor([ids])).logits[0].double()
    logprobs = torch.log_softmax(logits, -1)[:-1]
    chosen = logprobs[torch.arange(len(ids) - 1), torch.tensor(ids[1:])]
    return {"ids": ids, "logprobs": chosen.tolist()}


@torch.no_grad()
def write(model, tokenizer, prompt: str, length: int) -> dict:
    """As a user would: no option but the length, all else is in the folder."""
    inputs = tokenizer(prompt, return_tensors="pt")
    out = model.generate(**inputs, max_new_tokens=length)
    ids = out[0, inputs["input_ids"].shape[1] :].tolist()
    return {"ids": ids, "text": tokenizer.decode(ids, skip_special_tokens=True)}


def chat(tokenizer, messages: list[dict]) -> list[int]:
    text = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    return tokenizer(text, add_special_tokens=False)["input_ids"]


if __name__ == "__main__":
    main()
