"""A small random Gemma 3, in Kaggle's Flax layout and in Hugging Face's, for rehearsals.

Two periods of layers, so that every kind of layer is there and is scanned twice; sizes that eight
devices divide; a vocabulary of pairs of letters with bytes for the rest, as Gemma's own is made.
Its weights are random: no answer of it is right. Since its shape is no preset's, a `config.json`
lies beside the weights in both layouts.
"""

import dataclasses
import io
import string
from collections.abc import Iterable
from pathlib import Path

import sentencepiece
from flax import nnx

from aha_lib.model import export
from aha_lib.model.gemma import Gemma
from aha_lib.model.tokenizer import Tokenizer
from aha_lib.presets import MODELS, PUZZLES
from aha_lib.tasks import countdown

PIECES = 512
LAYERS = 12
SHAPE = dict(layers=LAYERS, width=64, heads=4, kv_heads=1, head_dim=16, ff=128)


def words() -> Tokenizer:
    """A vocabulary of puzzles and their solutions, in the templates that presets of Gemma have."""
    texts = []
    for index in range(200):
        puzzle = countdown.generate(0, index, PUZZLES["tiny"], held_out=False)
        texts += [countdown.prompt(puzzle, template) for template in ("short", "base")]
        texts += [f"{answer} = {puzzle.target}" for answer in countdown.solve(puzzle)]
    # Characters of other tasks: a vocabulary that spells them in bytes cannot be cut.
    texts.append(" ".join(string.ascii_letters + string.punctuation))
    lines = [line for text in texts for line in text.split("\n") if line]
    return gemma_like_tokenizer(lines, PIECES)


def gemma_like_tokenizer(texts: Iterable[str], pieces: int, *, turns: bool = True) -> Tokenizer:
    """A small vocabulary made as Gemma's is: byte pairs, digits apart, bytes for the rest.

    `turns`: it has the pieces that begin and end a turn of a chat.
    """
    out = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(texts),
        model_writer=out,
        model_type="bpe",
        vocab_size=pieces,
        byte_fallback=True,
        split_digits=True,
        add_dummy_prefix=False,
        pad_id=0,
        eos_id=1,
        bos_id=2,
        unk_id=3,
        pad_piece="<pad>",
        eos_piece="<eos>",
        bos_piece="<bos>",
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        hard_vocab_limit=False,
        control_symbols=["<start_of_turn>", "<end_of_turn>"] if turns else [],
        user_defined_symbols=["\n", "\n\n", "▁▁"],
        character_coverage=1.0,
        minloglevel=2,
    )
    return Tokenizer(out.getvalue())


def write(folder: Path) -> None:
    """`folder/kaggle` and `folder/hf`: one model in the two layouts."""
    tokenizer = words()
    config = dataclasses.replace(MODELS["gemma3-270m"], **SHAPE, vocab=tokenizer.vocab_size)
    model = Gemma(config, rngs=nnx.Rngs(0))
    export.save_kaggle(model, folder / "kaggle", tokenizer)
    export.save_hf(model, folder / "hf", tokenizer)


if __name__ == "__main__":
    import sys

    write(Path(sys.argv[1]))
