"""What a folder holds when a model leaves: tokenizer, stop ids, shape, one checkpoint alone."""

import dataclasses
import json
import os
import random
import stat

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from here import random_model
from safetensors.numpy import load_file, save_file
from stand_in import gemma_like_tokenizer
from test_tokenizer import byte_model
from tokenizers import Tokenizer as Tokenizers

from aha_lib.look import steering
from aha_lib.model import export, lora, weights
from aha_lib.model.gemma import Gemma
from aha_lib.model.tokenizer import Tokenizer, tiny_model
from aha_lib.presets import MODELS, PRETRAINING
from aha_lib.rl import sampler
from aha_lib.tasks import corpus

COLD = PRETRAINING["gemma3-270m-cpu"]
DOCUMENTS = ["".join(text for text, _ in corpus.document(COLD, i)) for i in range(300)]
SHAPE = dict(layers=1, width=16, heads=1, kv_heads=1, head_dim=16, ff=16, window=8)


def small(vocab: int, preset="gemma3-270m", **changes) -> Gemma:
    config = dataclasses.replace(MODELS[preset], **(SHAPE | dict(vocab=vocab, padding=0) | changes))
    return random_model(config)


@pytest.fixture(scope="module")
def gemma_like():
    return gemma_like_tokenizer([*DOCUMENTS, "from  yes no to\n\nthe end"], 340)


@pytest.fixture(scope="module")
def cut(gemma_like):
    used = {token for text in DOCUMENTS for token in gemma_like.encode(text)}
    return gemma_like.subset(sorted(used.union(gemma_like.special_ids)))


def read(path):
    return json.loads(path.read_text(encoding="utf-8"))


def test_ids_of_the_tokenizer_and_all_that_end_an_answer(tmp_path):
    """They are not Gemma's 0, 1 and 2 here."""
    words = Tokenizer(byte_model())
    export.save_hf(small(words.vocab_size), tmp_path, words)
    ids = {"pad_token_id": 257, "eos_token_id": [258, 261], "bos_token_id": 259}
    for name in ("config.json", "generation_config.json"):
        content = read(tmp_path / name)
        assert {key: content[key] for key in ids} == ids
    told = read(tmp_path / "tokenizer_config.json")
    assert told["tokenizer_class"] == "GemmaTokenizer" and told["add_bos_token"] is True
    assert "<start_of_turn>" in told["chat_template"]
    assert (tmp_path / "tokenizer.model").exists() and (tmp_path / "tokenizer.json").exists()


def test_without_turns_there_is_no_chat(tmp_path):
    words = Tokenizer(tiny_model())
    export.save_hf(small(words.vocab_size), tmp_path, words)
    assert "chat_template" not in read(tmp_path / "tokenizer_config.json")
    assert read(tmp_path / "generation_config.json")["eos_token_id"] == 1


def same_ids(tokenizer, folder, texts):
    """Ids with BOS, and text, of tokenizer.json against those of the SentencePiece model."""
    export.save_hf(small(tokenizer.vocab_size), folder, tokenizer)
    theirs = Tokenizers.from_file(str(folder / "tokenizer.json"))
    for text in texts:
        ids = tokenizer.encode(text)
        assert theirs.encode(text).ids == ids, text
        known = [i for i in ids if i != tokenizer.piece_id("<bos>")]
        if tokenizer.special_ids[-1] not in known:
            assert theirs.decode(known) == tokenizer.decode(known), text


def odd_texts(seed):
    """Blanks and line ends in a row, other scripts, emoji, control characters, nothing."""
    draw = random.Random(seed)
    alphabet = "  \n\tab019yesno=+,éß日本🦜\u200b\u0000e\u0301▁"
    lengths = [draw.randrange(40) for _ in range(300)]
    return ["", " ", "▁from", *("".join(draw.choices(alphabet, k=n)) for n in lengths)]


def test_tokenizer_json_of_byte_pairs(gemma_like, tmp_path):
    same_ids(gemma_like, tmp_path, [*DOCUMENTS, *odd_texts(0), "<table> from  yes\n\n\nno"])
    assert read(tmp_path / "tokenizer_config.json")["tokenizer_class"] == "GemmaTokenizer"


def test_tokenizer_json_of_a_cut_vocabulary(cut, tmp_path):
    """Each piece is taken whole, words after a blank included, and unknown text is one `<unk>`."""
    texts = [*DOCUMENTS, " yes", " no", "20-16=4 no yes", "zzz no 漢字 yes", *odd_texts(1)]
    assert any("▁no" in piece.piece for piece in cut.proto().pieces)
    same_ids(cut, tmp_path, texts)
    assert read(tmp_path / "tokenizer_config.json")["tokenizer_class"] == "PreTrainedTokenizerFast"


def test_tokenizer_json_of_whole_words(tmp_path):
    words = Tokenizer(tiny_model())
    texts = ["20 16 4 = 40 :", "  7   + 8 ", "yes no", "foo bar 20 100 1000 x yes", "<answer>"]
    odd = [text for text in odd_texts(2) if "▁" not in text]  # which is a blank to SentencePiece
    same_ids(words, tmp_path, [*texts, *odd])


def test_other_kinds_of_tokenizers_are_refused(tmp_path):
    proto = Tokenizer(tiny_model()).proto()
    proto.normalizer_spec.precompiled_charsmap = b"\0\0\0\0"
    words = Tokenizer(tiny_model())
    words.proto = lambda: proto
    with pytest.raises(ValueError, match="byte pairs or words .* put your own there"):
        export.save_hf(small(words.vocab_size), tmp_path / "out", words)
    assert not (tmp_path / "out").exists(), "nothing is written"


def test_another_models_tokenizer_is_refused(gemma_like, cut, tmp_path):
    """Such as the whole vocabulary's for a cut model, whose rows most ids would miss."""
    for save in (export.save_hf, export.save_kaggle):
        with pytest.raises(ValueError, match="pieces, the embedding .* rows: give the tokenizer"):
            save(small(cut.vocab_size), tmp_path / "out", gemma_like)
    assert not (tmp_path / "out").exists()


def test_rows_that_no_token_has_stay_here(tmp_path):
    """Gemma 2 has 128 of them: transformers would give them a share of every probability."""
    words = Tokenizer(tiny_model())
    rows = words.vocab_size + 128
    model = small(rows, "gemma2-2b", padding=128)
    export.save_hf(model, tmp_path / "hf", words)
    assert read(tmp_path / "hf" / "config.json")["vocab_size"] == words.vocab_size
    table = load_file(tmp_path / "hf" / "model.safetensors")["model.embed_tokens.weight"]
    np.testing.assert_array_equal(table, model.embed[...][: words.vocab_size])
    export.save_kaggle(model, tmp_path / "kaggle", words)
    assert weights.load(tmp_path / "kaggle")[2] == model.config, "as it is published, rows and all"


def shards(folder):
    """A checkpoint in two files, as a library saves it: of another model."""
    folder.mkdir()
    names = [f"model-0000{i}-of-00002.safetensors" for i in (1, 2)]
    for name in names:
        save_file({f"{name}.x": np.ones(3, np.float32)}, folder / name)
    index = {"weight_map": {f"{name}.x": name for name in names}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def test_shards_of_another_checkpoint_are_not_left_beside_it(tmp_path):
    shards(tmp_path / "old")
    before = sorted(path.name for path in (tmp_path / "old").iterdir())
    with pytest.raises(ValueError, match="several files .* Remove them, or save to another"):
        export.save_hf(small(118), tmp_path / "old", Tokenizer(tiny_model()))
    assert sorted(path.name for path in (tmp_path / "old").iterdir()) == before


def test_over_itself_and_beside_adapters(tmp_path):
    words = Tokenizer(tiny_model())
    model = small(words.vocab_size)
    other = small(words.vocab_size)
    lora.add(other, 1, rngs=nnx.Rngs(0))
    tmp_path.mkdir(exist_ok=True)
    lora.save(other, tmp_path / "adapters.safetensors")
    export.save_hf(model, tmp_path, words)
    model.embed[...] = model.embed[...] + 1
    export.save_hf(model, tmp_path, words)
    again = weights.load(tmp_path)[0]
    np.testing.assert_array_equal(again.embed[...], model.embed[...])
    assert not [path for path in tmp_path.iterdir() if path.suffix == ".part"]


@pytest.mark.parametrize("umask, mode", [(0o022, 0o644), (0o077, 0o600), (0o002, 0o664)])
def test_files_have_the_mode_of_the_umask(tmp_path, umask, mode):
    model = small(118)
    adapted = small(118)
    lora.add(adapted, 1, rngs=nnx.Rngs(0))
    before = os.umask(umask)
    try:
        export.save_hf(model, tmp_path / "out", Tokenizer(tiny_model()))
        lora.save(adapted, tmp_path / "out" / "adapters.safetensors")
    finally:
        os.umask(before)
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in (tmp_path / "out").iterdir()}
    assert set(modes.values()) == {mode}, modes


def test_a_steered_model_is_told_why(tmp_path):
    """Not to merge its adapters, of which it has none."""
    model = small(118)
    steering.add(model)
    for save in (export.save_hf, export.save_kaggle):
        with pytest.raises(ValueError, match="is steered, .* no place for a direction"):
            save(model, tmp_path / "out")


def test_the_dtype_is_written(tmp_path):
    config = dataclasses.replace(MODELS["gemma3-270m"], **SHAPE, vocab=118)
    model = random_model(config, dtype=jnp.bfloat16)
    export.save_hf(model, tmp_path)
    content = read(tmp_path / "config.json")
    assert content["dtype"] == content["torch_dtype"] == "bfloat16"
    assert "bos_token_id" not in content, "nobody has told it the tokenizer"


def test_ids_that_a_cut_vocabulary_lacks_are_refused(cut):
    """They would be read as its last piece."""
    model = small(cut.vocab_size)
    sampling = sampler.Sampling(group=1, length=1, stop_ids=(1,), pad_id=0)
    prompts = np.array([[2, cut.vocab_size]])
    with pytest.raises(ValueError, match=f"the token id {cut.vocab_size}, the model has"):
        sampler.sample(model, prompts, prompts > 0, jax.random.key(0), sampling)
