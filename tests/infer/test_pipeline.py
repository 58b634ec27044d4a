"""Classes are found again by other processes, or refused at once; importing costs nothing."""

from __future__ import annotations

import functools
import inspect
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from shoestring.base.errors import ConfigError
from shoestring.infer import Pipeline
from shoestring.infer.batch import Batch
from shoestring.infer.config import StageConfig
from shoestring.infer.pipeline import spec_of

OWN = ("uses", "options")
"""Said in another way."""


class Double:
    """A stage."""

    class Inner:
        """Not at the top."""

    def __call__(self, batch: Batch) -> dict[str, object]:
        return {"twice": batch["x"] * 2}


def halve(batch: Batch) -> dict[str, object]:
    """A stage that is a function."""
    return {"half": batch["x"] / 2}


def test_classes_functions_texts_and_paths_are_named() -> None:
    assert spec_of(Double) == f"{__name__}:Double"
    assert spec_of(halve) == f"{__name__}:halve"
    assert spec_of("model.py:Model") == "model.py:Model"
    assert spec_of(Path("model.onnx")) == "model.onnx"


def local_class() -> type:
    class Local:
        """Only here."""

    return Local


@pytest.mark.parametrize(
    ("uses", "why"),
    [
        (lambda batch: batch, "not at the top of its module"),
        (local_class(), "not at the top of its module"),
        (Double.Inner, "not at the top of its module"),
        (Double(), "give the class itself"),
        (functools.partial(halve), "a stage is a class or a function"),
        (3, "a stage is a class or a function"),
    ],
)
def test_what_other_processes_cannot_find_is_refused(uses: object, why: str) -> None:
    with pytest.raises(ConfigError) as caught:
        Pipeline("x.csv", "out").stage(uses)
    assert why in str(caught.value) and caught.value.todo


def test_a_class_that_was_defined_again_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    before = Double
    monkeypatch.setattr(sys.modules[__name__], "Double", type("Double", (), {}))
    with pytest.raises(ConfigError, match="has another Double by now"):
        spec_of(before)


def test_settings_become_those_of_a_job() -> None:
    pipeline = (
        Pipeline(
            ["a.csv", Path("b.csv")],
            "out",
            settings={
                "sink.format": "jsonl",
                "shards.rows": 10,
                "sink.columns": ("x", "it's"),
                "ledger_url": "1",
            },
        )
        .stage(
            Double, name="double", batch=16, columns=["x"], hang_s=5.0, memory_bytes=1 << 30, device_share=0.5
        )
        .stage("other.py:Model", after="double", keep=False, factor=3)
    )
    config = pipeline.config
    assert config.source.files == ("a.csv", "b.csv")
    assert config.sink.path == "out" and config.sink.format == "jsonl" and config.shards.rows == 10
    assert [stage.uses for stage in config.stages] == [f"{__name__}:Double", "other.py:Model"]
    assert config.stages[0].batch == 16 and config.stages[0].columns == ("x",)
    assert config.sink.columns == ("x", "it's") and config.ledger_url == "1"
    own = config.stages[0]
    assert (own.hang_s, own.memory_bytes, own.device_share, own.options) == (5.0, 1 << 30, 0.5, {})
    assert config.stages[1].options == {"factor": 3} and config.stages[1].keep is False
    with pytest.raises(ConfigError, match=r"did you mean `sink\.format`"):
        _ = Pipeline("a.csv", "out", settings={"sink.formt": "csv"}).config
    with pytest.raises(ConfigError, match="cannot be written as a setting"):
        _ = Pipeline("a.csv", "out", settings={"sink.format": None}).config


def test_every_setting_of_a_stage_can_be_given() -> None:
    given = inspect.signature(Pipeline.stage).parameters
    assert set(StageConfig.model_fields) <= set(given)
    assert {name: one.default for name, one in StageConfig.model_fields.items() if name not in OWN} == {
        name: given[name].default for name in StageConfig.model_fields if name not in OWN
    }


def in_python(code: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, cwd=cwd, check=False
    )


def test_importing_the_package_loads_next_to_nothing(tmp_path: Path) -> None:
    done = in_python(
        """
        import sys, shoestring.infer
        heavy = ("torch", "pyarrow", "numpy", "pydantic", "rich")
        print([name for name in heavy if name in sys.modules])
        """,
        tmp_path,
    )
    assert done.stdout.strip() == "[]", done.stderr


def test_a_class_that_was_typed_is_refused_and_one_of_a_script_is_its_files(tmp_path: Path) -> None:
    typed = """
        from shoestring.infer import Pipeline
        class Typed:
            def __call__(self, batch): return {}
        print(Pipeline("x.csv", "out").stage(Typed).config.stages[0].uses)
        """
    done = in_python(typed, tmp_path)
    assert "it was typed, and is in no file" in done.stderr
    script = tmp_path / "script.py"
    script.write_text(textwrap.dedent(typed))
    run = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, check=False)
    assert run.stdout.strip() == f"{script}:Typed", run.stderr


def test_a_script_that_runs_while_a_stage_is_loaded_from_it_is_told(tmp_path: Path) -> None:
    script = tmp_path / "unguarded.py"
    script.write_text(
        textwrap.dedent(
            """
            from shoestring.infer import Pipeline
            class Model:
                def __call__(self, batch): return {}
            Pipeline("x.csv", "out").stage(Model).run()
            """
        )
    )
    done = in_python(
        f"""
        from shoestring.infer.batch import StageContext
        from shoestring.infer.config import StageConfig
        from shoestring.infer.stages import load_stage
        load_stage(StageConfig(uses={str(script) + ":Model"!r}), StageContext("model"))
        """,
        tmp_path,
    )
    assert "if __name__ == '__main__'" in done.stderr
