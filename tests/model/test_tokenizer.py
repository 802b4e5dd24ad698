"""The tiny vocabulary, and one with byte pieces and turns as Gemma's has them."""

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sentencepiece import sentencepiece_model_pb2

from aha_lib.model.tokenizer import TINY_PATH, TINY_WORDS, WORDS, Tokenizer, tiny_model
from aha_lib.presets import MODELS

SPECIAL = ["<pad>", "<eos>", "<bos>", "<start_of_turn>", "<end_of_turn>"]


def byte_model() -> bytes:
    """A BPE model with 256 byte pieces, a few letters and, not at Gemma's ids, its specials."""
    proto = sentencepiece_model_pb2.ModelProto()
    kinds = sentencepiece_model_pb2.ModelProto.SentencePiece
    proto.pieces.add(piece="<unk>", score=0.0, type=kinds.UNKNOWN)
    for i in range(256):
        proto.pieces.add(piece=f"<0x{i:02X}>", score=0.0, type=kinds.BYTE)
    for piece in SPECIAL:
        proto.pieces.add(piece=piece, score=0.0, type=kinds.CONTROL)
    for i, piece in enumerate(["▁", *"abehlmorsuy", "us", "er"]):
        proto.pieces.add(piece=piece, score=-float(i), type=kinds.NORMAL)
    trainer, normalizer = proto.trainer_spec, proto.normalizer_spec
    trainer.model_type, trainer.byte_fallback = trainer.BPE, True
    trainer.vocab_size = len(proto.pieces)
    trainer.unk_id, trainer.pad_id, trainer.eos_id, trainer.bos_id = 0, 257, 258, 259
    trainer.pad_piece, trainer.eos_piece, trainer.bos_piece = SPECIAL[:3]
    normalizer.name, normalizer.add_dummy_prefix = "identity", False
    normalizer.remove_extra_whitespaces = False
    return proto.SerializeToString()


TINY, BYTES = Tokenizer.load(TINY_PATH), Tokenizer(byte_model())


def test_special_ids_by_piece():
    assert (TINY.pad_id, TINY.eos_id, TINY.bos_id) == (0, 1, 2)
    assert TINY.stop_ids == {1}
    assert (BYTES.pad_id, BYTES.eos_id, BYTES.bos_id) == (257, 258, 259)
    assert BYTES.stop_ids == {258, 261}
    assert BYTES.piece_id("<start_of_turn>") == 260


def test_a_tokenizer_of_another_family():
    proto = sentencepiece_model_pb2.ModelProto.FromString(tiny_model())
    del proto.pieces[0]
    with pytest.raises(ValueError, match="no piece '<pad>'; is it a Gemma tokenizer"):
        Tokenizer(proto.SerializeToString())


def test_shipped_file_is_the_tiny_model(tmp_path):
    assert TINY_PATH.read_bytes() == tiny_model()
    TINY.save(tmp_path / "tokenizer.model")
    assert Tokenizer.load(tmp_path / "tokenizer.model").encode("7 + 8") == TINY.encode("7 + 8")


def test_tiny_words_are_one_token_each():
    assert TINY.vocab_size == 4 + len(TINY_WORDS) == 118
    for i, word in enumerate(TINY_WORDS):
        assert TINY.encode(word) == [TINY.bos_id, 4 + i]


@given(st.lists(st.sampled_from(TINY_WORDS), min_size=1))
def test_tiny_text_comes_back(words):
    text = " ".join(words)
    ids = TINY.encode(text, bos=False)
    assert len(ids) == len(words)
    assert TINY.decode([TINY.bos_id, *ids, TINY.eos_id, TINY.pad_id]) == text
    assert "".join(TINY.stream(ids)) == text


@given(st.text())
def test_bytes_come_back(text):
    ids = BYTES.encode(text, bos=False)
    assert BYTES.decode(ids) == text
    assert "".join(BYTES.stream(ids)) == text


@given(st.lists(st.integers(0, BYTES.vocab_size - 1)))
def test_stream_adds_up_to_decode(ids):
    """Also for ids that are no whole characters."""
    assert "".join(BYTES.stream(iter(ids))) == BYTES.decode(ids)


def test_stream_holds_back_half_a_character():
    assert [*BYTES.stream(BYTES.encode("aé🦜", bos=False))] == ["a", "é", "🦜"]
    assert [*BYTES.stream(BYTES.encode("🦜", bos=False)[:2])] == [
        BYTES.decode([0xF0 + 1, 0x9F + 1])
    ]


def test_chat():
    start, end, newline = 260, 261, 1 + ord("\n")

    def text(words):
        return BYTES.encode(words, bos=False)

    turns = [("user", "aba"), ("model", "bob"), ("user", "<end_of_turn>")]
    ids = BYTES.chat(turns)
    assert ids == [
        259,
        start,
        *text("user\naba"),
        end,
        newline,
        start,
        *text("model\nbob"),
        end,
        newline,
        start,
        *text("user\n<end_of_turn>"),
        end,
        newline,
        start,
        *text("model\n"),
    ]
    assert ids.count(end) == 3, "text cannot end a turn"
    with pytest.raises(ValueError, match="no piece '<start_of_turn>'"):
        TINY.chat(turns)


def test_chat_follows_gemmas_template():
    """The assistant is the model, a system text stands before the user's, ends are stripped."""
    user = [("user", " aba\n"), ("model", "bob "), ("user", "sum")]
    renamed = [("user", "aba"), ("assistant", "bob"), ("user", "sum")]
    assert BYTES.chat(renamed) == BYTES.chat(user)
    system = [("system", "be a bob"), *user]
    assert BYTES.chat(system) == BYTES.chat([("user", "be a bob\n\naba"), *user[1:]])


@pytest.mark.parametrize(
    "turns, message",
    [
        ([("user", "a"), ("model", "b"), ("model", "c")], "Turn 3 is of 'model'"),
        ([("user", "a"), ("user", "b")], "Turn 2 is of 'user' and should be the model's"),
        ([("model", "a")], "Turn 1 is of 'model' and should be the user's"),
        ([("user", "a"), ("system", "b")], "Turn 2 is of 'system'"),
        ([("user", "a"), ("tool", "b")], "Turn 2 is of 'tool'"),
        ([("system", "a")], "needs a turn of the user"),
        ([], "needs a turn of the user"),
    ],
)
def test_turns_that_gemma_does_not_have(turns, message):
    with pytest.raises(ValueError, match=message):
        BYTES.chat(turns)


@pytest.mark.parametrize("content", [b"", b"<html>", b"version https://git-lfs.github.com/spec/v1"])
def test_a_file_that_is_no_tokenizer(content, tmp_path):
    path = tmp_path / "tokenizer.model"
    path.write_bytes(content)
    with pytest.raises(ValueError, match="tokenizer.model cannot be used: .* download it again"):
        Tokenizer.load(path)


def test_gemma():
    folder = os.environ.get("AHA_GEMMA_DIR")
    if not folder:
        pytest.skip("AHA_GEMMA_DIR is not set: the folder of a real Gemma 3 270M")
    gemma = Tokenizer.load(Path(folder) / "tokenizer.model")
    assert (gemma.vocab_size, gemma.pad_id, gemma.eos_id, gemma.bos_id) == (262_144, 0, 1, 2)
    assert gemma.stop_ids == {1, 106}
    assert gemma.chat([("user", "Hi")]) == [2, 105, 2364, 107, 10979, 106, 107, 105, 4368, 107]
    text = "Größe: 𓂀 🦜\n\tx  = [1, 22];"
    assert "".join(gemma.stream(gemma.encode(text))) == gemma.decode(gemma.encode(text)) == text


def test_small_words_are_one_token_each():
    tokenizer = Tokenizer(tiny_model(WORDS["small"]))
    assert tokenizer.vocab_size == MODELS["small"].vocab
    ids = tokenizer.encode(" ".join(WORDS["small"]), bos=False)
    assert len(set(ids)) == len(ids) == len(WORDS["small"])
    assert tokenizer.numbers() == {n: ids[n] for n in range(201)}
    assert max(Tokenizer(tiny_model()).numbers()) == 100
