from __future__ import annotations

import builtins
import re
import struct

import pytest
from fake_run import HEARTBEAT, HOSTILE, hostile_run, write_run
from hypothesis import given
from hypothesis import strategies as st

from sengi.cli.report import report
from sengi.errors import InputError
from sengi.report.markdown import escape
from sengi.report.write import write_report


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """The files of one report, read by several tests."""
    return write_report(write_run(tmp_path_factory.mktemp("runs") / "demo"), now=HEARTBEAT)


def test_page_markdown_and_pictures_are_written_and_printed(run_folder, capsys):
    before = {file.name: file.read_bytes() for file in run_folder.iterdir() if file.is_file()}
    assert report(run_folder) == 0
    printed = capsys.readouterr().out.split()
    assert printed[0] == str(run_folder / "report.html")
    assert {line.rsplit("/", 1)[1] for line in printed} == {
        *("report.html", "report.md", "loss.png", "grad_norm.png", "learning_rate.png", "scores.png", "lengths.png")
    }
    # The run itself is only read.
    assert all((run_folder / name).read_bytes() == content for name, content in before.items())


def test_pictures_are_png_of_a_readable_size_and_markdown_names_them(written):
    markdown = written[1].read_text(encoding="utf-8")
    pictures = [file for file in written if file.suffix == ".png"]
    for picture in pictures:
        content = picture.read_bytes()
        assert content[:8] == b"\x89PNG\r\n\x1a\n"
        assert content[-8:-4] == b"IEND"
        width, height = struct.unpack(">II", content[16:24])
        assert width == 1200
        assert height > 200
        assert f"](figures/{picture.name})" in markdown
    assert len(pictures) == 5


def test_markdown_has_the_tables_of_the_page(written):
    markdown = written[1].read_text(encoding="utf-8")
    assert "| facts | 2,000 | 180,123 | 60,000 | 75.0% |" in markdown
    assert re.search(r"\| group=taught \| 3\.3% .* \| 90\.0% .* \| \+86\.7 pp .* \| 30 \| better \|", markdown)
    assert re.search(
        r"\| effective\\_batch\\_size \| 64 \| recipe\.yaml:3 \| 3,840 to 7,680 samples \| different", markdown
    )
    # Every table has as many cells in each row as in its head.
    for block in re.findall(r"(?:^\|.*\|\n)+", markdown, re.MULTILINE):
        assert len({len(re.findall(r"(?<!\\)\|", line)) for line in block.splitlines()}) == 1


def test_hostile_text_stays_text_in_markdown_and_pictures(tmp_path):
    files = write_report(hostile_run(tmp_path / "run"), now=HEARTBEAT)
    markdown = files[1].read_text(encoding="utf-8")
    assert "<script" not in markdown
    assert "<img" not in markdown
    assert HOSTILE not in markdown


@given(st.text())
def test_escaped_text_is_one_line_without_markup(text):
    written = escape(text)
    assert len(written.splitlines()) <= 1
    assert "<" not in written
    assert not re.search(r"(?<!\\)(?:\\\\)*[|`*_\[\]~]", written)


def test_links_in_text_are_not_links():
    assert "://" not in escape("see https://example.org/x")


def test_output_goes_where_it_is_asked_to_with_the_same_bytes(written, tmp_path):
    target = tmp_path / "a" / "b"
    files = write_report(written[0].parent, target, now=HEARTBEAT)
    assert [file.relative_to(target) for file in files] == [file.relative_to(written[0].parent) for file in written]
    # The page holds chart ids that Bokeh draws by chance; all else is a function of the run.
    for first, second in zip(written[1:], files[1:], strict=True):
        assert first.read_bytes() == second.read_bytes()


def test_one_step_is_enough(tmp_path):
    files = write_report(write_run(tmp_path / "run", steps=1), now=HEARTBEAT)
    assert files[0].stat().st_size > 100_000


@pytest.mark.parametrize("package", ["bokeh", "matplotlib"])
def test_without_the_extra_the_message_says_what_to_install(run_folder, monkeypatch, package):
    real = builtins.__import__

    def without(name, *args, **kwargs):
        if name.split(".")[0] == package:
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(InputError, match=r"pip install 'sengi\[report\]'"):
        write_report(run_folder, now=HEARTBEAT)
    assert not (run_folder / "report.html").exists()
