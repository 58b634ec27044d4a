"""From settings to packed tokens, and back out of the cache."""

from __future__ import annotations

from pathlib import Path

import pytest

from shoestring.base.errors import ConfigError, DataError
from shoestring.data.packing import digest
from shoestring.data.prepare import PackingConfig, Prepared, prepare
from shoestring.data.sources import SourceConfig, name_hash
from shoestring.data.tokenizer import TextTokenizer, TokenizerConfig
from shoestring.data.tokens import PackedTokens
from tests.data.files import TEXT, small_tokenizer, write, write_texts

WIKITEXT = Path(__file__).parents[3] / "shared/data/wikitext-2"


def ready(folder: Path, pattern: str = "**/*.py", **settings: object) -> Prepared:
    source = {"files": (f"{folder}/in/{pattern}",), "heldout_share": 0.2} | settings
    cache = PackingConfig(cache_dir=str(folder / "cache"))
    return prepare(SourceConfig.model_validate(source), TokenizerConfig(vocab_size=300), cache)


def texts(prepared: Prepared, folder: Path) -> dict[str, bytes]:
    return dict(PackedTokens(folder).texts(TextTokenizer.load(prepared.tokenizer_path)))


def cached(folder: Path) -> dict[str, int]:
    paths = [path for path in (folder / "cache").rglob("*") if path.suffix in (".bin", ".json")]
    return {str(path): path.stat().st_ino for path in paths if path.name != "index.json"}


def test_training_and_held_out_text_make_the_whole(tmp_path: Path) -> None:
    files = write_texts(tmp_path / "in", 40)
    prepared = ready(tmp_path)
    train, heldout = texts(prepared, prepared.train_dir), texts(prepared, prepared.heldout_dir)
    assert not train.keys() & heldout.keys()
    assert train | heldout == {file.name: Path(file.url).read_bytes() for file in files}
    assert prepared.files == 40 and all(name_hash(name) < 0.2 for name in heldout)


def test_what_is_ready_is_taken_again_and_what_changed_is_not(tmp_path: Path) -> None:
    files = write_texts(tmp_path / "in", 40)
    first = ready(tmp_path)
    before = cached(tmp_path)
    assert ready(tmp_path) == first and cached(tmp_path) == before
    train = next(file for file in files if name_hash(file.name) >= 0.2)
    write(Path(train.url), b"changed\n" * 40)
    second = ready(tmp_path)
    assert second.train_dir != first.train_dir
    assert texts(second, second.train_dir)[train.name] == b"changed\n" * 40
    assert ready(tmp_path, heldout_share=0.3).train_dir != first.train_dir


def test_a_held_out_twin_of_a_training_text_is_left_out(tmp_path: Path) -> None:
    files = write_texts(tmp_path / "in", 40)
    heldout = [file for file in files if name_hash(file.name) < 0.2]
    train = next(file for file in files if file not in heldout)
    write(Path(heldout[0].url), Path(train.url).read_bytes())
    prepared = ready(tmp_path)
    assert prepared.heldout.duplicates == [heldout[0].name]
    assert prepared.heldout.documents == len(heldout) - 1
    marks = {digest(data) for data in texts(prepared, prepared.train_dir).values()}
    assert not marks & {digest(data) for data in texts(prepared, prepared.heldout_dir).values()}


def test_a_twin_that_comes_later_is_left_out_too(tmp_path: Path) -> None:
    files = write_texts(tmp_path / "in", 40)
    heldout = next(file for file in files if name_hash(file.name) < 0.2)
    train = next(file for file in files if name_hash(file.name) >= 0.2)
    assert not ready(tmp_path).heldout.duplicates
    write(Path(train.url), Path(heldout.url).read_bytes())
    assert ready(tmp_path).heldout.duplicates == [heldout.name]


def test_each_bad_file_is_named_once(tmp_path: Path) -> None:
    write_texts(tmp_path / "in", 10)
    bad = [write(tmp_path / f"in/bad{n}.py", b"\0\1" * 50) for n in range(20)]
    prepared = ready(tmp_path)
    assert sorted(file.path for file in prepared.skipped) == sorted(file.url for file in bad)


def test_only_bad_files_are_fatal(tmp_path: Path) -> None:
    for n in range(5):
        write(tmp_path / f"in/{n}.py", b"\0")
    with pytest.raises(DataError, match=r"none of \d files .* zero byte"):
        ready(tmp_path)


def test_nothing_to_hold_out_is_a_clear_error(tmp_path: Path) -> None:
    write(tmp_path / "in/only.py", b"x = 1\n")
    with pytest.raises(DataError):
        ready(tmp_path)


def test_a_tokenizer_of_ones_own_is_used(tmp_path: Path) -> None:
    write_texts(tmp_path / "in", 10)
    path = tmp_path / "mine.json"
    small_tokenizer().save(path)
    source = SourceConfig(files=(f"{tmp_path}/in/*.py",))
    cache = PackingConfig(cache_dir=str(tmp_path / "cache"))
    assert prepare(source, TokenizerConfig(file=str(path)), cache).tokenizer_path == path
    assert not list((tmp_path / "cache").glob("tokenizer-*"))
    with pytest.raises(ConfigError, match="cannot read"):
        prepare(source, TokenizerConfig(file=str(tmp_path / "no.json")), cache)


def test_each_phase_shows_its_progress_to_the_end(tmp_path: Path) -> None:
    write_texts(tmp_path / "in", 40)
    seen: list[tuple[str, int, int]] = []
    source = SourceConfig(files=(f"{tmp_path}/in",), heldout_share=0.2)
    cache = PackingConfig(cache_dir=str(tmp_path / "cache"))
    prepare(source, TokenizerConfig(vocab_size=300), cache, lambda *now: seen.append(now))
    assert list(dict.fromkeys(phase for phase, _, _ in seen)) == [
        "tokenizer",
        "training text",
        "held-out text",
    ]
    last = {phase: (done, total) for phase, done, total in seen}
    assert all(done == total > 0 for done, total in last.values())


def test_the_tokenizer_learns_from_a_sample_of_the_training_files_only(tmp_path: Path) -> None:
    files = write_texts(tmp_path / "in", 40)
    for file in files:
        if name_hash(file.name) < 0.2:
            write(Path(file.url), b"qxqxqxqx " * 200 + file.name.encode())
    tokenizer = TextTokenizer.load(ready(tmp_path).tokenizer_path)
    assert len(tokenizer.encode(b"qxqxqxqx")) == 8
    assert len(tokenizer.encode(TEXT.encode())) < len(TEXT) / 2


@pytest.mark.skipif(not WIKITEXT.exists(), reason="the shared wikitext-2 is not here")
def test_two_real_files(tmp_path: Path) -> None:
    source = SourceConfig(files=(f"{WIKITEXT}/*.txt",))
    cache = PackingConfig(cache_dir=str(tmp_path))
    prepared = prepare(source, TokenizerConfig(vocab_size=1000, sample_bytes=100_000), cache)
    whole = texts(prepared, prepared.train_dir) | texts(prepared, prepared.heldout_dir)
    assert whole == {path.name: path.read_bytes() for path in WIKITEXT.glob("*.txt")}
