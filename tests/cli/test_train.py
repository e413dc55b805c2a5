"""``sengi train`` and ``sengi plan`` as a user meets them: what is printed, what is left on disk, which exit code."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from tests import warm
from tests.model.tiny_folder import write_tiny_folder

from sengi.cli.app import run

ROWS = [
    {
        "messages": [
            {"role": "user", "content": f"What is {i} plus {i % 7}?"},
            {"role": "assistant", "content": f"It is {i + i % 7}."},
        ]
    }
    for i in range(40)
]
QUESTIONS = [{"question": f"What is {i} plus 1?", "answer": str(i + 1), "id": f"q{i}"} for i in range(3)]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_folder(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture
def recipe(tmp_path: Path, model: Path) -> Callable[..., Path]:
    """Writes data and a recipe of a 5-step run; keyword arguments change or (None) remove keys."""

    def write(**changes: object) -> Path:
        data = tmp_path / "train.jsonl"
        data.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
        questions = tmp_path / "questions.jsonl"
        questions.write_text("".join(json.dumps(row) + "\n" for row in QUESTIONS))
        values: dict[str, object] = {
            "model_name_or_path": str(model),
            "data": [{"path": str(data)}],
            "output_dir": str(tmp_path / "run"),
            "effective_batch_size": 16,
            "num_train_epochs": 2,
            "learning_rate": 1e-3,
            "max_tokens_per_device": 256,
            "dtype": "float32",
            "eval_data": str(data),
            "eval_questions": str(questions),
            "eval_steps": 2,
            **changes,
        }
        path = tmp_path / "recipe.yaml"
        path.write_text(yaml.safe_dump({key: value for key, value in values.items() if value is not None}))
        return path

    return write


def one_line_error(capsys: pytest.CaptureFixture[str]) -> str:
    """The error on stderr: exactly one line that begins with 'error:', and no traceback."""
    text = capsys.readouterr().err
    errors = [line for line in text.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1, text
    assert "Traceback" not in text
    return errors[0]


def test_a_run_leaves_everything_it_promises(recipe: Callable[..., Path], tmp_path: Path, capsys) -> None:
    assert run(["train", str(recipe())]) == 0
    folder = tmp_path / "run"
    printed = capsys.readouterr()
    # the plan first, with its products written out, then the table and the report
    assert "80 samples / 16 a step = 5 optimizer steps" in printed.out
    assert "before and after training" in printed.out
    assert "report.html" in printed.out
    lines = [json.loads(line) for line in (folder / "dynamics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2, 3, 4, 5]
    assert lines[-1]["samples_seen"] == 80
    assert {"loss", "grad_norm", "learning_rate", "tokens_per_second", "mfu", "data_wait_seconds"} <= lines[0].keys()
    assert json.loads((folder / "status.json").read_text())["state"] == "finished"
    # held-out loss before, every eval_steps and after; questions before and after
    evaluations = {path.name for path in (folder / "evaluations").glob("*.json")}
    assert evaluations == {
        *(f"step-0000000{step}-heldout.json" for step in (0, 2, 4, 5)),
        *(f"step-0000000{step}-questions.json" for step in (0, 5)),
    }
    checkpoint = folder / "checkpoint-5"
    for name in ("config.json", "model.safetensors", "tokenizer.json", "chat_template.jinja", "README.md"):
        assert (checkpoint / name).is_file(), name
    assert (folder / "report.html").is_file()
    assert (folder / "environment.json").is_file()
    # the same command finds nothing left to do
    assert run(["train", str(recipe())]) == 0
    assert len((folder / "dynamics.jsonl").read_text().splitlines()) == 5


def test_the_ledger_lists_a_step_and_proves_it(recipe: Callable[..., Path], tmp_path: Path, capsys) -> None:
    assert run(["train", str(recipe(eval_questions=None, eval_data=None))]) == 0
    capsys.readouterr()
    seen: list[str] = []
    for step in (1, 2, 3):
        assert run(["data", "ledger", str(tmp_path / "run"), "--step", str(step), "--json"]) == 0
        answer = json.loads(capsys.readouterr().out)
        assert answer["verified"] is True
        seen += answer["samples"]
    # an epoch of 40: every sample once, in steps of 16, 16 and the first 8 of step 3
    assert sorted(seen[:40]) == sorted(f"{tmp_path / 'train.jsonl'}:{row}" for row in range(1, 41))
    assert run(["data", "ledger", str(tmp_path / "run"), "--step", "99"]) == 2
    assert "this run has steps 1 to 5" in one_line_error(capsys)


def test_a_changed_recipe_on_an_old_folder_shows_the_difference(recipe: Callable[..., Path], capsys) -> None:
    path = recipe(eval_questions=None, eval_data=None)
    assert run(["train", str(path)]) == 0
    capsys.readouterr()
    assert run(["train", str(path), "--set", "learning_rate=5e-4"]) == 2
    assert "learning_rate was 0.001, is 0.0005" in one_line_error(capsys)
    # a key that decides no weight may change, and it is said
    assert run(["train", str(path), "--set", "save_total_limit=1"]) == 0
    assert "save_total_limit was 3, is now 1" in capsys.readouterr().err


def test_changed_data_on_an_old_folder_is_refused(recipe: Callable[..., Path], tmp_path: Path, capsys) -> None:
    path = recipe(eval_questions=None, eval_data=None)
    assert run(["train", str(path)]) == 0
    capsys.readouterr()
    with (tmp_path / "train.jsonl").open("a") as data:
        data.write(json.dumps(ROWS[0]) + "\n")
    assert run(["train", str(path)]) == 2
    assert "data, tokenizer or chat template changed since this run began" in one_line_error(capsys)


def test_plan_prints_and_trains_nothing(recipe: Callable[..., Path], tmp_path: Path, capsys) -> None:
    assert run(["plan", str(recipe()), "--json"]) == 0
    plan = json.loads(capsys.readouterr().out)
    assert (plan["samples"], plan["steps"], plan["last_step_samples"]) == (40, 5, 16)
    assert plan["reasons"]["lr_scheduler_type"]
    assert not (tmp_path / "run").exists()


def test_a_nan_stops_before_the_update_and_names_the_samples(
    recipe: Callable[..., Path], tmp_path: Path, capsys
) -> None:
    # a rate this high blows the weights up within a few steps; the step that finds out makes no update
    changes = {"learning_rate": 1.0, "max_grad_norm": 0, "num_train_epochs": 200, "eval_questions": None}
    path = recipe(eval_data=None, eval_steps=None, adam_epsilon=1e-30, **changes)
    from sengi.train import step as step_module

    norm = step_module.gradient_norm
    calls = []

    def broken(parameters: object, world: object) -> object:
        calls.append(1)
        result = norm(parameters, world)  # type: ignore[arg-type]
        return result * float("nan") if len(calls) > 4 else result  # twice a step: after half of it, and whole

    step_module.gradient_norm = broken  # type: ignore[assignment]
    try:
        assert run(["train", str(path)]) == 1
    finally:
        step_module.gradient_norm = norm
    message = one_line_error(capsys)
    assert "step 3: " in message
    assert "gradient norm is nan; no update was made and step 2 is saved" in message
    assert "train.jsonl:" in message
    assert (tmp_path / "run" / "checkpoint-2").is_dir()
    status = json.loads((tmp_path / "run" / "status.json").read_text())
    assert status["state"] == "failed"
    assert "gradient norm is nan" in status["reason"]


def change_data(text: str | bytes) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        (folder / "train.jsonl").write_bytes(text if isinstance(text, bytes) else text.encode())

    return change


GOOD = json.dumps(ROWS[0]) + "\n"


@pytest.mark.parametrize(
    ("override", "change", "words"),
    [
        (["learning_rat=1"], None, "no key 'learning_rat'; did you mean 'learning_rate'"),
        (["learning_rate=-1"], None, "learning_rate: must be greater than 0, got -1"),
        (["data.0.path=/nowhere/x.jsonl"], None, "/nowhere/x.jsonl"),
        ([], change_data(GOOD + GOOD[:-20]), "train.jsonl:2"),
        ([], change_data(""), "train.jsonl"),
        ([], change_data(json.dumps({"messages": [{"role": "user", "content": "hi"}]}) + "\n"), "no_assistant_turn"),
        ([], change_data(json.dumps({"text_": "x"}) + "\n"), "train.jsonl:1"),
        (["max_tokens_per_device=8"], None, "raise max_tokens_per_device or lower max_length"),
        (["max_length=8", "overlong=error"], None, "max_length is 8; raise max_length"),
        (["max_length=8"], None, "none of 40 rows can be trained on"),
        (["model_name_or_path=/nowhere/model"], None, "/nowhere/model"),
        (["preset=labb"], None, "did you mean 'lab'"),
        (["eval_questions=/nowhere/q.jsonl"], None, "/nowhere/q.jsonl"),
    ],
)
def test_bad_input_is_one_line_with_cause_and_cure(
    recipe: Callable[..., Path], tmp_path: Path, capsys, override, change, words: str
) -> None:
    path = recipe(eval_data=None)
    if change is not None:
        change(tmp_path)
    sets = [part for item in override for part in ("--set", item)]
    assert run(["train", str(path), *sets]) == 2
    message = one_line_error(capsys)
    assert words in message
    assert ";" in message or " or " in message  # the cure


def test_pickle_weights_are_refused(recipe: Callable[..., Path], tmp_path: Path, model: Path, capsys) -> None:
    folder = tmp_path / "pickled"
    folder.mkdir()
    for file in model.iterdir():
        if file.suffix != ".safetensors":
            (folder / file.name).write_bytes(file.read_bytes())
    (folder / "pytorch_model.bin").write_bytes(b"\x80\x04.")
    assert run(["train", str(recipe(model_name_or_path=str(folder)))]) == 2
    assert "safetensors" in one_line_error(capsys)


def test_a_template_that_raises_names_the_row(recipe: Callable[..., Path], tmp_path: Path, model: Path, capsys) -> None:
    folder = tmp_path / "raising"
    folder.mkdir()
    for file in model.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    template = "{{ raise_exception('only in Latin') }}"
    (folder / "chat_template.jinja").write_text(template)
    config = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps({**config, "chat_template": template}))
    assert run(["train", str(recipe(model_name_or_path=str(folder)))]) == 2
    assert "only in Latin" in one_line_error(capsys)


def test_a_missing_recipe_names_the_nearest_file(tmp_path: Path, capsys) -> None:
    (tmp_path / "recipe.yaml").write_text("model_name_or_path: x\n")
    assert run(["train", str(tmp_path / "recip.yaml")]) == 2
    assert "did you mean 'recipe.yaml'" in one_line_error(capsys)


def test_bad_input_leaves_no_folder_behind(recipe: Callable[..., Path], tmp_path: Path, capsys) -> None:
    path = recipe()
    change_data("")(tmp_path)
    assert run(["train", str(path)]) == 2
    assert not (tmp_path / "run").exists()


def test_samples_longer_than_the_models_context_are_refused(
    recipe: Callable[..., Path], tmp_path: Path, capsys
) -> None:
    long = {"messages": [{"role": "user", "content": "one " * 400}, {"role": "assistant", "content": "two"}]}
    path = recipe(eval_data=None, eval_questions=None)
    change_data(GOOD + json.dumps(long) + "\n")(tmp_path)
    assert run(["train", str(path)]) == 2
    message = one_line_error(capsys)
    assert "train.jsonl:2 has" in message
    assert "this model was made for 256; lower max_length to 256" in message


def test_a_reader_that_goes_away_does_not_stop_the_run(recipe: Callable[..., Path], tmp_path: Path) -> None:
    # as in `sengi train recipe.yaml 2>&1 | head -1`
    read, write = os.pipe()
    process = warm.start(["-m", "sengi", "train", str(recipe(eval_questions=None))], stdout=write, stderr=write)
    os.close(write)
    assert os.read(read, 1)
    os.close(read)
    assert process.wait(timeout=300) == 0
    assert json.loads((tmp_path / "run/status.json").read_text())["state"] == "finished"
