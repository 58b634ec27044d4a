"""Settings: laid over in order, refused with the place and the nearest known name, written and read back."""

from __future__ import annotations

import enum
import tomllib
from pathlib import Path
from typing import Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import Field, ValidationError, model_validator

from shoestring.base.config import Config, known_keys, load_config, nearest_key, parse_config, to_toml
from shoestring.base.errors import ConfigError


class Colour(enum.Enum):
    RED = "red"
    BLUE = "blue"


class Sgd(Config):
    kind: Literal["sgd"] = "sgd"
    momentum: float = 0.9


class Muon(Config):
    kind: Literal["muon"] = "muon"
    iterations: int = 5


class DataConfig(Config):
    files: tuple[str, ...] = ()
    root: Path = Path("here")
    field: str | None = None
    weights: dict[str, float] = {}


class PaceConfig(Config):
    batch: int = Field(default=32, gt=0)
    batch_start: int = 0
    rate: float = 1e-3

    @model_validator(mode="after")
    def _grows(self) -> PaceConfig:
        if self.batch_start > self.batch:
            raise ValueError(f"batch_start {self.batch_start} is above batch {self.batch}")
        return self


class JobConfig(Config):
    name: str = "job"
    fast: bool = False
    colour: Colour = Colour.RED
    pace: PaceConfig = PaceConfig()
    data: DataConfig = DataConfig()
    optimizer: Sgd | Muon = Field(default=Sgd(), discriminator="kind")
    stages: tuple[PaceConfig, ...] = ()


def write(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


def test_nothing_laid_over_is_the_recipe() -> None:
    recipe = JobConfig(name="mine", pace=PaceConfig(batch=64))
    assert load_config(recipe) == recipe


def test_files_then_texts_the_last_one_wins(tmp_path: Path) -> None:
    first = write(tmp_path / "a.toml", "name = 'a'\n[pace]\nbatch = 1\nrate = 0.5\n")
    second = write(tmp_path / "b.toml", "[pace]\nbatch = 2\n")
    loaded = load_config(JobConfig(fast=True), [first, second], ["pace.rate=0.25", "pace.rate=0.125"])
    assert (loaded.name, loaded.fast) == ("a", True)
    assert loaded.pace == PaceConfig(batch=2, rate=0.125)


@pytest.mark.parametrize(
    ("text", "read", "value"),
    [
        ("pace.batch=64", lambda c: c.pace.batch, 64),
        ("pace.rate=3", lambda c: c.pace.rate, 3.0),
        ("pace.rate=1e-4", lambda c: c.pace.rate, 1e-4),
        ("fast=true", lambda c: c.fast, True),
        ("name=plain", lambda c: c.name, "plain"),
        ("name='quoted'", lambda c: c.name, "quoted"),
        ("name=", lambda c: c.name, ""),
        ("name=2024", lambda c: c.name, "2024"),
        ("name=true", lambda c: c.name, "true"),
        ("name=a=b", lambda c: c.name, "a=b"),
        ("name=1\nfast = true", lambda c: (c.name, c.fast), ("1\nfast = true", False)),
        ("colour=blue", lambda c: c.colour, Colour.BLUE),
        ("data.root=/some/where", lambda c: c.data.root, Path("/some/where")),
        ("data.root=7", lambda c: c.data.root, Path("7")),
        ("data.files=docs/**/*.md", lambda c: c.data.files, ("docs/**/*.md",)),
        ("data.files=2024", lambda c: c.data.files, ("2024",)),
        ('data.files=["a", "b"]', lambda c: c.data.files, ("a", "b")),
        ("data.files=[]", lambda c: c.data.files, ()),
        ("data.field=text", lambda c: c.data.field, "text"),
        ("data.weights.en=0.5", lambda c: c.data.weights, {"en": 0.5}),
        ("optimizer.momentum=0.5", lambda c: c.optimizer, Sgd(momentum=0.5)),
    ],
)
def test_a_text_is_read_as_its_setting_wants_it(text: str, read: Any, value: Any) -> None:
    assert read(load_config(JobConfig(), [], [text])) == value


@pytest.mark.parametrize(
    ("text", "what", "todo"),
    [
        ("pace.bacth=3", r"unknown setting `pace\.bacth`.*from --set", "did you mean `pace.batch`?"),
        ("batch=3", "unknown setting `batch`", "did you mean `pace.batch`?"),
        (
            "optimizer.momentm=3",
            r"unknown setting `optimizer\.momentm`",
            "did you mean `optimizer.momentum`?",
        ),
        ("pace.batch=1.5", r"`pace\.batch` should be a valid integer, but is 1\.5 \(number\)", "pace.batch"),
        ("pace.batch=many", r'`pace\.batch` .*integer, but is "many" \(text\)', "pace.batch"),
        ("pace.batch=true", r"`pace\.batch` .*integer, but is true", "pace.batch"),
        ("pace.batch=0", r"`pace\.batch` should be greater than 0, but is 0", "pace.batch"),
        ("fast=1", r"`fast` should be a valid boolean, but is 1 \(integer\)", "fast"),
        ("colour=green", r"`colour` should be 'red' or 'blue', but is \"green\"", "colour"),
        ("pace=3", "`pace` should be a table of settings, but is 3", "pace"),
        ("data.files=[1, 'a']", r"`data\.files\.0` should be a valid string, but is 1", "data.files.0"),
        ("data.weights.en=x", r"`data\.weights\.en` should be a valid number", "data.weights.en"),
        ("pace.batch_start=99", "`pace`: batch_start 99 is above batch 32", "change `pace`"),
        ("pace.batch", "not of the form name=value", "--set"),
        ("=3", "not of the form name=value", "--set"),
        ("pace..batch=3", "not of the form name=value", "--set"),
    ],
)
def test_what_is_wrong_is_said_with_its_place_and_a_way_out(text: str, what: str, todo: str) -> None:
    with pytest.raises(ConfigError, match=what) as caught:
        load_config(JobConfig(), [], [text])
    assert todo in caught.value.todo


def test_a_mistake_in_a_file_names_the_file(tmp_path: Path) -> None:
    path = write(tmp_path / "mine.toml", "[pace]\nbatch = 'x'\n[[stages]]\nbacth = 2\n")
    with pytest.raises(ConfigError) as caught:
        load_config(JobConfig(), [path])
    assert caught.value.what.count("mine.toml") == 2
    assert "`stages.0.bacth`" in caught.value.what


def test_text_in_a_file_is_not_turned_into_something_else(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="`name` should be a valid string, but is 3"):
        load_config(JobConfig(), [write(tmp_path / "a.toml", "name = 3")])
    with pytest.raises(ConfigError, match="`data.files`"):
        load_config(JobConfig(), [write(tmp_path / "b.toml", "[data]\nfiles = 'a'")])


def test_many_mistakes_are_counted() -> None:
    with pytest.raises(ConfigError, match="and 3 more"):
        load_config(JobConfig(), [], [f"wrong{number}=1" for number in range(8)])


@pytest.mark.parametrize("content", [b"name = ", b"\xff\xfe", None])
def test_a_file_that_is_no_toml_is_named(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "bad.toml"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ConfigError, match=r"bad\.toml"):
        load_config(JobConfig(), [path])


def test_a_missing_setting_is_named() -> None:
    class Needs(Config):
        path: str

    with pytest.raises(ConfigError, match="`path` is missing"):
        parse_config(Needs, {})


def test_configs_are_frozen_and_strict() -> None:
    config = PaceConfig()
    with pytest.raises(ValidationError):
        config.batch = 3  # type: ignore[misc]
    with pytest.raises(ValidationError):
        PaceConfig(batch="3")  # type: ignore[arg-type]
    with pytest.raises(ValidationError):
        PaceConfig(bacth=3)  # type: ignore[call-arg]


def test_a_setting_that_may_be_none_is_none_when_absent() -> None:
    with pytest.raises(TypeError, match="may be None"):

        class Wrong(Config):
            field: str | None = "text"


def test_nearest_key_prefers_the_same_last_name_anywhere() -> None:
    assert nearest_key(JobConfig, "rate") == "pace.rate"
    assert nearest_key(JobConfig, "optimizer.iteratons") == "optimizer.iterations"
    assert {"pace", "pace.batch", "optimizer.momentum", "optimizer.iterations"} <= set(known_keys(JobConfig))


texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
paces = st.builds(
    PaceConfig,
    batch=st.integers(min_value=1, max_value=2**53),
    batch_start=st.just(0),
    rate=st.floats(allow_nan=False),
)
jobs = st.builds(
    JobConfig,
    name=texts,
    fast=st.booleans(),
    colour=st.sampled_from(Colour),
    pace=paces,
    data=st.builds(
        DataConfig,
        files=st.lists(texts, max_size=3).map(tuple),
        field=st.none() | texts,
        weights=st.dictionaries(texts, st.floats(allow_nan=False), max_size=3),
    ),
    optimizer=st.builds(Muon, iterations=st.integers(-5, 5)) | st.builds(Sgd, momentum=st.floats(0, 1)),
    stages=st.lists(paces, max_size=2).map(tuple),
)


@given(jobs)
def test_what_is_written_as_toml_is_read_back_equal(job: JobConfig) -> None:
    assert parse_config(JobConfig, tomllib.loads(to_toml(job))) == job
