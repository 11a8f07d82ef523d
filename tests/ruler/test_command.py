"""Mistakes on the command line end it in one line, before anything is compiled."""

from __future__ import annotations

from pathlib import Path

import pytest

from collective_einsum.ruler import __main__ as command


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("hlo text.txt --target v5e:2x2 --trace .", "'.' cannot be written; name a file"),
        ("hlo text.txt --target v5e:2x2 --trace no/t.json", "'no/t.json' cannot be written"),
        ("predict yours:step --png no/t.png", "'no/t.png' cannot be written"),
        ("predict yours:step --png text.txt/t.png", "'text.txt/t.png' cannot be written"),
        ("predict yours:step --png t.jpg", "'t.jpg': end its name in .png"),
        ("predict yours:step --html t.htm", "'t.htm': end its name in .html"),
        ("hlo text.txt --target v5e:2x2 --html no/t.html", "'no/t.html' cannot be written"),
        ("hlo none.txt --target v5e:2x2", "there is no file 'none.txt'"),
        ("compare yours:step --target v5e:2x2", "required: B"),
        ("compare yours:step yours:step", "required: --target"),
        ("compare none.txt yours:step --target v5e:2x2", "'none.txt' is neither a file"),
        ("compare yours: text.txt --target v5e:2x2", "'yours:' is not MODULE:FUNCTION"),
        ("compare yours:step yours:step --target v5e:2x2 --mesh a=4", "--mesh has no effect here"),
        ("compare text.txt text.txt --target v5e:2x2 --option a=1", "--option has no effect here"),
        ("compare text.txt text.txt --target v5e:2x2 --mesh a", "'a' is not AXIS=SIZE"),
        ("compare text.txt text.txt --target v5e:3x2", "is no slice of TPU v5e"),
        ("", "required:"),
    ],
)
def test_mistakes(
    words: str,
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text.txt").write_text("HloModule m")
    try:
        status = command.main(words.split())
    except SystemExit as error:
        status = error.code
    printed = capsys.readouterr()
    assert status == 2
    assert message in printed.err
    assert len(printed.err.splitlines()) == 1
    assert not printed.out
    assert [path.name for path in tmp_path.iterdir()] == ["text.txt"]
