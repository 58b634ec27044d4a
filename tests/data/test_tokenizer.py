"""Any bytes go through the tokenizer and come back."""

from __future__ import annotations

import itertools
import json
import sysconfig
from pathlib import Path

import pytest
import tokenizers
from hypothesis import example, given
from hypothesis import strategies as st

from shoestring.base.errors import ConfigError, DataError
from shoestring.data import tokenizer as module
from shoestring.data.tokenizer import END, START, TextTokenizer, train_tokenizer
from tests.data.files import TEXT, small_tokenizer

TOKENIZER = small_tokenizer()
PLAIN = tokenizers.Tokenizer.from_str(TOKENIZER.to_json())
WIKITEXT = Path(__file__).parents[3] / "shared/data/wikitext-2/valid.txt"


@given(st.binary(max_size=200))
def test_any_bytes_come_back(data: bytes) -> None:
    assert TOKENIZER.decode(TOKENIZER.encode(data)) == data


@given(st.text(max_size=200))
def test_any_text_comes_back(text: str) -> None:
    assert TOKENIZER.decode(TOKENIZER.encode(text.encode("utf-8", "surrogatepass"))) == text.encode(
        "utf-8", "surrogatepass"
    )


def test_every_single_byte_is_a_token() -> None:
    assert len({tuple(TOKENIZER.encode(bytes([b]))) for b in range(256)}) == 256


def test_text_that_looks_like_a_special_token_is_text() -> None:
    ids = TOKENIZER.encode(f"{START}{END}".encode())
    assert not {TOKENIZER.start_id, TOKENIZER.end_id} & {*ids, *TOKENIZER.encode(f"é{START}{END}".encode())}
    assert TOKENIZER.decode([TOKENIZER.start_id, *ids, TOKENIZER.end_id]) == f"{START}{END}".encode()


# Letters, digits, signs and all that some definition or other takes for a space or a line end.
# Learned where spaces and line ends come in every order, so that a wrong cut shows in the tokens.
SPACES = ["".join(run) for run in itertools.product(" \n\t", repeat=5)]
SPACED = train_tokenizer([("x".join(SPACES) + "é" + TEXT).encode()] * 5, 600)
AWKWARD = st.text(
    alphabet="aZ_09 \t\n\r\x0b\x0c\x1c\x1f\x85\x00\x7f.('é²Ⅷ١\u0301\u2028\u3000世🙂", max_size=120
)


@example("aaaaaaaaa \n  b" * 3)
@given(AWKWARD)
def test_a_long_text_is_encoded_in_pieces_as_if_it_were_whole(text: str) -> None:
    with pytest.MonkeyPatch.context() as patch:
        whole = SPACED.encode(text.encode())
        patch.setattr(module, "_PIECE_CHARS", 5)
        assert SPACED.encode(text.encode()) == whole


@given(AWKWARD)
def test_known_words_are_put_together_as_the_package_encodes_the_text(text: str) -> None:
    ids = TOKENIZER.encode(text.encode())
    assert ids == PLAIN.encode(text, add_special_tokens=False).ids
    assert ids == TOKENIZER.encode(text.encode())


def test_the_standard_library_is_encoded_as_the_package_does() -> None:
    for name in ("argparse.py", "turtle.py", "locale.py", "tarfile.py"):
        text = Path(sysconfig.get_path("stdlib"), name).read_text(encoding="utf-8")
        assert TOKENIZER.encode(text.encode()) == PLAIN.encode(text, add_special_tokens=False).ids


def test_the_memory_of_words_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_KNOWN_WORDS", 20)
    tokenizer = small_tokenizer()
    for n in range(200):
        text = f"def name{chr(97 + n % 26)}{chr(97 + n // 26)}(): pass\n"
        assert tokenizer.encode(text.encode()) == TOKENIZER.encode(text.encode())
    assert len(tokenizer._known) < 40


def test_a_tokenizer_with_more_added_tokens_is_not_taken_word_by_word(tmp_path: Path) -> None:
    TOKENIZER.save(tmp_path / "a.json")
    plain = tokenizers.Tokenizer.from_file(str(tmp_path / "a.json"))
    plain.add_tokens(["return x"])
    plain.save(str(tmp_path / "b.json"))
    ids = TextTokenizer.load(tmp_path / "b.json").encode(b"a return x")
    assert ids == plain.encode("a return x").ids and ids[-1] == plain.get_vocab_size() - 1
    assert TextTokenizer.load(tmp_path / "b.json").decode(ids) == b"a return x"


def test_learned_tokens_shorten_what_was_learned_from() -> None:
    data = TEXT.encode()
    tokenizer = train_tokenizer([data] * 10, 400)
    assert 258 < tokenizer.vocab_size <= 400
    assert len(tokenizer.encode(data)) < len(data) / 2


def test_the_same_text_gives_the_same_tokenizer(tmp_path: Path) -> None:
    data = Path(sysconfig.get_path("stdlib"), "argparse.py").read_bytes()
    for name in ("a", "b"):
        train_tokenizer([data, TEXT.encode()], 600).save(tmp_path / name)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_saved_and_loaded_it_is_the_same_and_standard(tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.json"
    TOKENIZER.save(path)
    loaded = TextTokenizer.load(path)
    assert loaded.encode(TEXT.encode()) == TOKENIZER.encode(TEXT.encode())
    plain = tokenizers.Tokenizer.from_file(str(path))
    assert plain.encode(TEXT).ids == TOKENIZER.encode(TEXT.encode())
    assert plain.decode(plain.encode(TEXT).ids) == TEXT


@pytest.mark.parametrize("content", ["", "{}", "no json"])
def test_a_damaged_file_is_named(tmp_path: Path, content: str) -> None:
    path = tmp_path / "tokenizer.json"
    path.write_text(content)
    with pytest.raises(ConfigError, match=str(path)):
        TextTokenizer.load(path)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot read"):
        TextTokenizer.load(tmp_path / "no.json")


@pytest.mark.parametrize("change", ["normaliser", "bytes", "special"])
def test_a_tokenizer_that_loses_something_is_refused(tmp_path: Path, change: str) -> None:
    path = tmp_path / "tokenizer.json"
    TOKENIZER.save(path)
    settings = json.loads(path.read_text())
    if change == "normaliser":
        settings["normalizer"] = {"type": "Lowercase"}
    elif change == "special":
        settings["added_tokens"] = settings["added_tokens"][:1]
    else:
        vocabulary = settings["model"]["vocab"]
        vocabulary["a new name"] = vocabulary.pop("Ā")
    path.write_text(json.dumps(settings))
    with pytest.raises(ConfigError, match="not byte-level"):
        TextTokenizer.load(path)


@pytest.mark.parametrize("splitter", [{"type": "Whitespace"}, {"type": "WhitespaceSplit"}])
def test_a_tokenizer_that_drops_spaces_is_refused(tmp_path: Path, splitter: dict[str, str]) -> None:
    settings = json.loads(TOKENIZER.to_json())
    level = settings["pre_tokenizer"]["pretokenizers"][1]
    settings["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": [splitter, level]}
    (tmp_path / "tokenizer.json").write_text(json.dumps(settings))
    with pytest.raises(ConfigError, match="loses or adds"):
        TextTokenizer.load(tmp_path / "tokenizer.json")


def test_no_text_is_a_clear_error() -> None:
    with pytest.raises(DataError, match="no text"):
        train_tokenizer([], 300)


@pytest.mark.skipif(not WIKITEXT.exists(), reason="the shared wikitext-2 is not here")
def test_a_real_text_comes_back() -> None:
    data = WIKITEXT.read_bytes()[:200_000]
    tokenizer = train_tokenizer([data], 1000)
    ids = tokenizer.encode(data)
    assert tokenizer.decode(ids) == data and len(ids) < len(data) / 2
