"""`python -m layouts`: what it prints, and mistakes, which end it in one line."""

from __future__ import annotations

import json
import math
import re
import shutil
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import layouts
from layouts import reference
from layouts.__main__ import main
from layouts.checkpoints import load
from layouts.command_line import drawn_tokens, models, tokens
from layouts.models.stacked_params import is_unrolled

from . import tiny_checkpoint

MESH = "2,2,2"
TEXT = "The quick brown fox jumps over the lazy dog, again and again. " * 3


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("checkpoint") / "tiny"
    (path.parent / "text.txt").write_text(TEXT)
    return tiny_checkpoint.write(path)


def run(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[str, str]:
    """What a command writes to stdout and to stderr."""
    status = main(words)
    printed = capsys.readouterr()
    assert status == 0, printed.err
    return printed.out, printed.err


def refused(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    """The one line that a mistake gives."""
    try:
        status = main(words)
    except SystemExit as error:
        status = error.code
    printed = capsys.readouterr()
    assert status == 2
    assert not printed.out
    assert len(printed.err.splitlines()) == 1, printed.err
    return printed.err


def encoded(text: str) -> list[int]:
    """By the alphabet of bytes, without the library."""
    visible = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in visible]
    letter = {b: chr(b) for b in visible} | {b: chr(256 + n) for n, b in enumerate(others)}
    places = {letter: i for i, letter in enumerate(sorted(letter.values()))}
    return [256, *(places[letter[byte]] for byte in text.encode())]


@pytest.mark.parametrize("how", [(), ("--temperature", "0.9", "--top_p", "0.8", "--seed", "3")])
def test_generate_is_layouts_generate(
    mesh_of: Any, folder: Path, capsys: pytest.CaptureFixture[str], how: tuple[str, ...]
) -> None:
    words = ("--prompt", "Hej å", "--tokens", "9", "--emulate", MESH, "--dtype", "float32")
    out, err = run(capsys, "generate", "--checkpoint", str(folder), *words, *how)
    mesh = mesh_of((2, 2, 2), "xyz")
    config = layouts.padded_for(layouts.config_from_hf(folder), mesh)
    assert (config.padded_heads, config.padded_vocab) == (8, 264)
    params = load(folder, mesh, config=config, dtype=jnp.float32)
    drawn, counts = layouts.generate(
        config,
        mesh,
        params,
        [encoded("Hej å")],
        max_new_tokens=9,
        sampling=layouts.Sampling(0.9, top_p=0.8) if how else None,
        seeds=np.array([3 if how else 0]),
        end_tokens=257,
    )
    decode = tokens.tokenizer_of(folder).decoder()
    own = np.asarray(drawn)[0, : int(counts[0])].tolist()
    assert out == "".join(decode(token) for token in own if token != 257) + "\n"
    assert "5 heads do not divide over the mesh: 8 are stored (padded_heads)" in err
    assert "259 tokens do not divide over the mesh: 264 are stored (padded_vocab)" in err
    assert re.search(r"plan: prefill W[SG] .*, .*; decode W[SG] .*, ", err)


def test_text_is_written_as_it_comes(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Letters of several bytes when they are complete, nothing after the end."""
    seen = []

    def drawn(*given: Any, **options: Any) -> Any:
        del given, options
        for token in (*encoded("aå")[1:], 256, *encoded("b")[1:], 257, *encoded("c")[1:]):
            yield np.array([token])
            seen.append(capsys.readouterr().out)

    monkeypatch.setattr("layouts.command_line.generate.drawn_tokens", drawn)
    words = ("generate", "--checkpoint", str(folder), "--prompt", "x", "--emulate", "1,1,1")
    out, _ = run(capsys, *words)
    assert (seen, out) == (["a", "", "å", "", "b"], "\n")


def test_several_prompts(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Each as it is alone."""
    words = ("--tokens", "4", "--emulate", "1,1,5", "--weights", "int8", "--dtype", "float32")
    given = ("generate", "--checkpoint", str(folder), *words)
    both, _ = run(capsys, *given, "--prompt", "One", "--prompt", "Another")
    one, _ = run(capsys, *given, "--prompt", "One")
    assert both.startswith(f"'One':\n{one}\n'Another':\n")


@pytest.mark.parametrize("checkpoint", [True, False], ids=["read", "drawn"])
def test_unrolled(
    folder: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    checkpoint: bool,
) -> None:
    """The same text, of layers whose weights are arrays of their own."""
    apart = []

    def drawn(config: Any, mesh: Any, params: Any, *given: Any, **options: Any) -> Any:
        apart.append(is_unrolled(params))
        return drawn_tokens.drawn_tokens(config, mesh, params, *given, **options)

    monkeypatch.setattr("layouts.command_line.generate.drawn_tokens", drawn)
    words = (
        "generate",
        "--prompt",
        "One",
        "--tokens",
        "4",
        "--emulate",
        "1,1,2",
        "--dtype",
        "float32",
    )
    given = (*words, "--checkpoint", str(folder)) if checkpoint else words
    one, other = run(capsys, *given)[0], run(capsys, *given, "--unrolled")[0]
    assert (one, apart) == (other, [False, True])


def test_chat(folder: Path) -> None:
    ids = tokens.tokenizer_of(folder).encode_chat("Hi", "Be kind")
    said = [*encoded("system: Be kind"), 258, *encoded("\nuser: Hi")[1:]]
    assert ids == [*said, 258, *encoded("\nassistant: ")[1:]]


def test_a_tokenizer_alone_says_what_ends_a_text(folder: Path, tmp_path: Path) -> None:
    shutil.copy(folder / "tokenizer.json", tmp_path)
    for end, ends in (
        ("</s>", (257,)),
        ({"content": "</s>"}, (257,)),
        ("no token", ()),
        (None, ()),
    ):
        (tmp_path / "tokenizer_config.json").write_text(json.dumps({"eos_token": end}))
        assert tokens.tokenizer_of(tmp_path).ends == ends


def test_without_a_checkpoint(capsys: pytest.CaptureFixture[str]) -> None:
    """A mesh that no power of two fits."""
    out, err = run(capsys, "generate", "--prompt", "Hi", "--tokens", "3", "--emulate", "1,1,5")
    assert out.endswith("\n")
    assert "no --checkpoint: random weights, and a token for each byte" in err
    assert models.small_model(5).d_model % 5 == 0


def test_perplexity(mesh_of: Any, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Of windows that the text does not fill, in batches that windows do not fill."""
    file = str(folder.parent / "text.txt")
    words = ("--emulate", MESH, "--dtype", "float32", "--context", "50", "--batch", "3")
    out, _ = run(capsys, "score", "--checkpoint", str(folder), "--text", file, *words)
    ids = encoded(TEXT)
    mesh = mesh_of((1, 1, 1), "xyz")
    config = layouts.config_from_hf(folder)
    params = load(folder, mesh, dtype=jnp.float32)
    windows = [ids[i : i + 50] for i in range(0, len(ids), 50)]
    assert len({len(window) for window in windows}) == 2
    total = sum(
        float(reference.score(params, config, jnp.array([w]), jnp.array([len(w)])).sum())
        for w in windows
    )
    count = len(ids) - len(windows)
    wanted = f"perplexity {math.exp(-total / count):.3f}"
    assert out.startswith(wanted)
    assert f" of {count} tokens in {len(windows)} windows of up to 50; " in out
    assert out.endswith(f"{-total / math.log(2) / len(TEXT.encode()):.4f} bits a byte\n")


def test_continuations(mesh_of: Any, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ("--prompt", "The sky is", "--continuation", " blue", "--continuation", " or not")
    given = ("--emulate", "2,2,1", "--dtype", "float32", "--plan", "WS 2D, heads")
    out, _ = run(capsys, "score", "--checkpoint", str(folder), *words, *given)
    head, *lines = out.splitlines()
    assert head == "log-likelihood  tokens  continuation"
    config, params = (
        layouts.config_from_hf(folder),
        load(folder, mesh_of((1, 1, 1), "xyz"), dtype=jnp.float32),
    )
    for line, text in zip(lines, (" blue", " or not"), strict=True):
        ids = encoded("The sky is" + text)
        scores = reference.score(params, config, jnp.array([ids]), jnp.array([len(ids)]))
        number, count, words_ = line.split(maxsplit=2)
        assert float(number) == pytest.approx(float(scores[0, -len(text) :].sum()), abs=1e-3)
        assert (int(count), words_) == (len(text), repr(text))


def test_plan(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ("--target", "v5e:4x4", "--batch", "64", "--context", "2048")
    out, _ = run(capsys, "plan", "--model", "palm-62b", *words)
    wanted = layouts.plan("palm-62b", chip="v5e", chips=16, phase="decode", batch=64, context=2048)
    assert out == f"{wanted}\n"
    (folder / "model.safetensors").rename(folder / "elsewhere")
    out, _ = run(
        capsys,
        "plan",
        "--checkpoint",
        str(folder),
        "--mesh",
        "2,2,2",
        *words[2:],
        "--target",
        "v4:2x2x2",
    )
    (folder / "elsewhere").rename(folder / "model.safetensors")
    assert out.startswith(
        "padded so that it divides over the mesh: padded_heads=8, padded_vocab=264\ntiny, decode"
    )
    words = ("--phase", "prefill", "--length", "100", "--batch", "3", "--target", "tpu7x:2x2x1")
    out, _ = run(capsys, "plan", "--model", "palm-8b", "--weights", "int8", *words)
    assert out.startswith("palm-8b, prefill, on TPU7x")


@pytest.mark.tpu
def test_a_plan_is_replayed(capsys: pytest.CaptureFixture[str]) -> None:
    words = ("--target", "v5e:2x4", "--batch", "8", "--context", "256", "--replay", "1")
    out, _ = run(capsys, "plan", "--model", "palm-8b", *words)
    wanted = layouts.plan("palm-8b", chip="v5e", chips=8, phase="decode", batch=8, context=256)
    assert out == f"{layouts.replay_plan(wanted, first=1)}\n"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            "generat",
            "there is no command 'generat'; choose generate, score, plan; did you mean 'generate'?",
        ),
        ("", "required: COMMAND"),
        ("generate", "give a prompt: --prompt"),
        ("generate --promt x", "there is no argument '--promt'; did you mean '--prompt'?"),
        ("generate --prompt x --top-p 0.5", "'--top-p'; did you mean '--top_p'?"),
        ("generate --prompt x --checkpoint none", "there is no 'none'"),
        ("generate --prompt x --emulate 2,2", "'2,2' is not X,Y,Z, the sizes of a mesh"),
        ("generate --prompt x --emulate 1,1,1 --mesh 1,1,1", "both give a mesh"),
        ("generate --prompt x --emulate 3,3,1", "needs 9 emulated devices but jax has started"),
        ("generate --prompt x --mesh 8,2,1", "--mesh 8,2,1 needs 16 devices, and there are 8"),
        ("generate --prompt x --tokens 0", "'0' is no positive integer"),
        (
            "generate --prompt x --weights int9",
            "'int9' is none of bf16, int8; did you mean 'int8'?",
        ),
        ("generate --prompt x --temperature hot", "'hot' is no number"),
        ("generate --prompt x --temperature 1 --top_p 2", "top_p=2.0 must be in (0, 1]"),
        ("generate --prompt x --plan heads", "must name a feedforward layout"),
        ("generate --prompt x --chat --emulate 1,1,1", "--chat needs the chat template"),
        ("generate --prompt x --system y", "--system has no effect without --chat"),
        ("generate --prompt x --checkpoint empty", "has no config.json"),
        ("generate --prompt x --checkpoint bare", "has no tokenizer.json"),
        (
            "generate --prompt x --checkpoint tiny --emulate 3,1,1",
            "d_model=40 does not divide over the 3",
        ),
        ("score", "give a text, --text FILE, or a prompt with continuations"),
        ("score --text none", "there is no file 'none'"),
        ("score --continuation x", "continuations continue a prompt"),
        ("plan", "give a model: --checkpoint FOLDER, or --model NAME"),
        ("plan --model palm-9b --target v4:2x2x2", "no model named 'palm-9b'"),
        ("plan --model palm-8b", "give the slice to plan for"),
        ("plan --model palm-8b --target v9:2x2", "no chip is known by that name"),
        (
            "plan --model palm-8b --target v5e --batch 2",
            "--target v5e: give the chip and its number",
        ),
        ("plan --model palm-8b --target v5e:4x4 --batch 2", "phase='decode' needs context="),
        ("plan --model palm-8b --target v5e:2x8 --batch 2 --context 9", "such as --mesh 2,8,1"),
        (
            "plan --model palm-8b --target v5e:4x4 --mesh 2,2,1",
            "has 4 devices, and --target v5e:4x4 16",
        ),
        ("plan --model palm-8b --target v5e:4x4 --phase decod", "did you mean 'decode'?"),
        (
            "plan --model palm-8b --target v5e:4x4 --batch 2 --context 9 --unrolled",
            "--unrolled is about the programs that --replay compiles",
        ),
        ("plan --model palm-8b --target v5e:4x4 --replay all", "'all' is no positive integer"),
        (
            "plan --model palm-8b --target v5e:2x1 --batch 2 --context 9 --replay 1",
            "there is no slice of 2 devices of TPU v5e",
        ),
    ],
)
def test_mistakes(
    words: str,
    message: str,
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(folder.parent)
    for name in ("empty", "bare"):
        Path(name).mkdir(exist_ok=True)
    Path("bare/config.json").write_text(json.dumps(tiny_checkpoint.FIELDS))
    assert message in refused(capsys, *words.split())


def test_chat_templates_that_cannot_be_used(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tiny_checkpoint.write(tmp_path / "tiny")
    chat = (
        "generate",
        "--checkpoint",
        str(folder),
        "--chat",
        "--prompt",
        "x",
        "--emulate",
        "1,1,1",
    )
    template = folder / "chat_template.jinja"

    def last_line() -> str:
        assert main(chat) == 2
        return capsys.readouterr().err.splitlines()[-1]

    template.write_text("{{ raise_exception('no users') }}")
    assert "cannot be used: no users" in last_line()
    template.write_text("{% if %}")
    assert "cannot be used: " in last_line()
    template.unlink()
    (folder / "tokenizer_config.json").unlink()
    assert "has no chat template, neither chat_template.jinja nor" in last_line()
    monkeypatch.setitem(__import__("sys").modules, "jinja2", None)
    template.write_text("{{ messages }}")
    assert "jinja2, which is not installed" in last_line()


def test_drawn_tokens_are_those_of_generate(mesh_of: Any) -> None:
    """Of prompts of several lengths, with settings for each."""
    config, mesh = layouts.model("tiny-padded"), mesh_of((2, 2, 2), "xyz")
    params = layouts.init(config, mesh, jax.random.key(0), jnp.float32)
    prompts = [[1, 2, 3], [4], [5, 6]]
    sampling = layouts.Sampling([0.0, 1.0, 2.0], top_k=9)
    given: Any = {"max_new_tokens": 5, "sampling": sampling, "seeds": [7, 8, 9]}
    found = list(drawn_tokens.drawn_tokens(config, mesh, params, prompts, **given))
    padded = [[1, 2, 3], [4, 0, 0], [5, 6, 0]]
    given["seeds"] = np.array([7, 8, 9])
    wanted, _ = layouts.generate(config, mesh, params, padded, lengths=[3, 1, 2], **given)
    np.testing.assert_array_equal(np.stack(found, 1), wanted)
