"""Wrong command lines and Python calls, each with the message it gets. Run as a script, it counts what happens.

    python tests/faults/table.py            # every row, counted by category
    python tests/faults/table.py -v         # and the rows that end otherwise than they should
    python tests/faults/table.py -v 2       # the same, with 2 seconds for each row instead of 10
    python tests/faults/table.py --calls    # the Python calls alone, as JSON

A row runs in one process, in a folder of its own kind (`furnish`), and must end with exit code 2, one line on standard
error that holds its message, and no file written. A row that takes longer was accepted and is working.
"""

import contextlib
import io
import json
import os
import re
import signal
import sys
import tempfile
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any, NamedTuple

LIMIT = next((int(word) for word in sys.argv[1:] if word.isdigit()), 10) if __name__ == "__main__" else 10  # seconds
OUT = ("-o", "x.safetensors")
UCE = ("erase", "uce", "church", *OUT)
ESD = ("erase", "esd", "church", *OUT)
KPOP = ("erase", "kpop", "church", *OUT)
LONG = "a" * 5000


class Row(NamedTuple):
    """One command line: what kind of mistake it is, its words, and a pattern of the message."""

    category: str
    args: tuple[str, ...]
    says: str


def furnish(folder: Path) -> None:
    """Put the files that rows name into a folder: damaged edits, pickles, folders and texts."""
    header = b'{"__metadata__":{"efface":"{}"},"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}'
    size = len(header).to_bytes(8, "little")
    (folder / "plain.safetensors").write_bytes(size + header + bytes(4))
    (folder / "cut.safetensors").write_bytes(size + header)
    other = header.replace(b'"efface":"{}"', b'"x":"{}"')
    (folder / "other.safetensors").write_bytes(len(other).to_bytes(8, "little") + other + bytes(4))
    found = header.replace(b'"efface":"{}"', b'"efface-finding":"{\\"queries\\":[],\\"meta\\":{}}"')
    (folder / "finding.safetensors").write_bytes(len(found).to_bytes(8, "little") + found + bytes(4))
    (folder / "other.json").write_text('{"a": 1}')
    (folder / "list.json").write_text("[1]")
    (folder / "empty.safetensors").write_bytes(b"")
    (folder / "text.safetensors").write_text("this is no edit at all")
    (folder / "huge.safetensors").write_bytes((1 << 62).to_bytes(8, "little") + b"{}")
    (folder / "model.ckpt").write_bytes(b"\x80\x04.")
    (folder / "model.bin").write_bytes(b"\x80\x04.")
    (folder / "text.png").write_text("this is no image")
    (folder / "text.txt").write_text("text")
    (folder / "none.txt").write_text("# nothing\n")
    (folder / "latin.txt").write_bytes(b"caf\xe9\n")
    (folder / "bench.toml").write_text('concepts = ["church"]\nmethods = ["uce"]\n')
    (folder / "wrong.toml").write_text('modle = "mini"\nconcepts = ["chruch"]\nmethods = ["ucee"]\n')
    (folder / "protocol.toml").write_text('title = "x"\npaper = 3\n\n[mini]\nmethods = ["ucee"]\nweird = 1\n')
    (folder / "words.csv").write_text("words\na\n")
    (folder / "folder").mkdir()
    (folder / "folder.safetensors").mkdir()
    (folder / "folder.png").mkdir()
    (folder / "folder.json").mkdir()


def usage() -> list[Row]:
    """Return mistakes in the words themselves."""
    rows: list[tuple[str, str]] = [
        ("nosuch", "No such command 'nosuch'"),
        ("--nosuch", "unknown flag of efface '--nosuch'"),
        ("list", "Missing argument 'WHAT'"),
        ("list nosuch", "unknown list 'nosuch'"),
        ("list method", "did you mean 'methods'"),
        ("list methods attacks", "unexpected extra argument"),
        ("list methods --nosuch", "unknown flag of efface list '--nosuch'"),
        ("list concepts --model nosuch", "unknown model 'nosuch'"),
        ("list concepts --model folder", "holds no model_index.json"),
        ("list concepts --model model.ckpt", "is a pickle file"),
        ("erase nosuch church -o x.safetensors", "unknown method 'nosuch'"),
        ("erase ucee church -o x.safetensors", "did you mean 'uce'"),
        ("erase church -o x.safetensors", "unknown method 'church'"),
        ("erase uce -o x.safetensors", "Missing argument 'CONCEPT"),
        ("erase uce church", "Missing option '--output'"),
        ("erase uce church -o", "requires an argument"),
        ("erase uce church -o x.safetensors --nosuch 3", "unknown flag of .*uce '--nosuch'"),
        ("erase uce church -o x.safetensors --erase-scal 3", "did you mean '--erase-scale'"),
        ("erase uce church -o x.safetensors --lr 3", "unknown flag"),
        ("erase uce church -o x.safetensors --checkpoint c", "unknown flag"),
        ("erase esd church -o x.safetensors --stream", "unknown flag"),
        ("erase esd church -o x.safetensors --key k.safetensors", "unknown flag"),
        ("generate", "Missing argument 'PROMPT|^$"),
        ("generate --seeds 0", "Missing argument 'PROMPT"),
        ("generate x --nosuch", "unknown flag of efface generate '--nosuch'"),
        ("generate x --seed 1", "did you mean '--seeds'"),
        ("generate x --steps", "requires an argument"),
        ("compare --seeds 0", "Missing argument 'PROMPT"),
        ("compare x", "nothing to compare with"),
        ("compare x --nosuch", "unknown flag of efface compare '--nosuch'"),
        ("evaluate --seeds 0", "Missing argument 'EDIT"),
        ("evaluate a b", "unexpected extra argument"),
        ("evaluate a --nosuch", "unknown flag of efface evaluate '--nosuch'"),
        ("purify --steps 3", "Missing argument 'IMAGE"),
        ("purify text.png --nosuch", "unknown flag of efface purify"),
        ("combine -o x.safetensors", "Missing argument 'EXPRESSION"),
        ("combine plain.safetensors", "Missing option"),
        ("export plain.safetensors -o x --nosuch", "unknown flag of efface export '--nosuch'"),
        ("export -o x", "Missing argument 'EXPRESSION"),
        ("inspect", "Missing argument 'FILE"),
        ("inspect a b", "unexpected extra argument"),
        ("inspect a --nosuch", "unknown flag of efface inspect '--nosuch'"),
        ("export plain.safetensors -m mini", "Missing option '--output'"),
        ("demo --nosuch", "unknown flag of efface demo '--nosuch'"),
        ("demo church", "unexpected extra argument"),
    ]
    return [Row("words of the command line", tuple(line.split()), says) for line, says in rows]


def concepts() -> list[Row]:
    """Return mistakes in what to erase and to preserve."""
    more: list[tuple[tuple[str, ...], str]] = [
        (("erase", "uce", "curch", *OUT), "unknown concept 'curch'; did you mean 'church'"),
        (("erase", "uce", "", *OUT), "a concept is empty"),
        (("erase", "uce", "  ", *OUT), "a concept is empty"),
        (("erase", "uce", LONG, *OUT), "unknown concept"),
        (("erase", "uce", "church", "church", *OUT), "named twice: church"),
        ((*UCE, "--preserve", "church"), "both erased and preserved: church"),
        ((*UCE, "--preserve", "hous"), "unknown concept 'hous'; did you mean 'house'"),
        ((*UCE, "--preserve", ""), "a concept is empty"),
        ((*UCE, "--preserve", "house", "house"), "named twice: house"),
        ((*UCE, "--anchor", "a", "b"), "--anchor: give one for all or one for each"),
        ((*UCE, "--kind", "nosuch"), "unknown kind 'nosuch'"),
        ((*UCE, "--kind", "styl"), "did you mean 'style'"),
        ((*UCE, "--preset", "nosuch"), "unknown preset of uce 'nosuch'"),
        ((*UCE, "--preset", "repo-2024"), "did you mean 'repo-2025'"),
        (("erase", "negative", "church", *OUT, "--preset", "x"), "negative has no presets"),
        (("demo", "--concept", "nosuch"), "unknown concept 'nosuch'"),
        (("demo", "--concept", "neon"), "neon is a style"),
        (("demo", "--concept", "weapon"), "weapon is a family"),
        (("demo", "--concept", ""), "a concept is empty"),
        (("generate", ""), "a prompt is empty"),
        (("generate", "a", " "), "a prompt is empty"),
        (("compare", "", "-e", "plain.safetensors"), "a prompt is empty"),
    ]
    return [Row("concepts and prompts", args, says) for args, says in more]


def outputs() -> list[Row]:
    """Return outputs that could not be written."""
    given = {
        ".safetensors": (("erase", "uce", "church"), ("erase", "esd", "church"), ("combine", "plain.safetensors")),
        ".png": (
            ("generate", "x"),
            ("compare", "x", "-e", "plain.safetensors"),
            ("purify", "text.png", "-e", "plain.safetensors"),
        ),
        ".json": (("evaluate", "plain.safetensors"),),
    }
    rows = []
    for suffix, commands in given.items():
        wrong = [
            (f"folder{suffix}", "is a folder; name a"),
            ("x.txt", f"give the file a name that ends in {suffix}"),
            ("x", f"ends in {suffix}"),
            (f"nosuch/x{suffix}", "does not exist; make it first"),
            (f"text.txt/x{suffix}", "is a file, not a folder|Not a directory"),
            (f"/proc/x{suffix}", "cannot write in /proc"),
            (f"{LONG}{suffix}", "File name too long"),
            (f"{'a' * 300}/x{suffix}", "File name too long"),
        ]
        for command in commands:
            flag = "--json" if suffix == ".json" else "-o"
            rows += [Row("outputs", (*command, flag, name), says) for name, says in wrong]
    rows += [
        Row("outputs", ("demo", "-o", "text.txt"), "cannot make the folder text.txt"),
        Row("outputs", ("demo", "-o", "/proc/x"), "cannot make the folder /proc/x"),
        Row("outputs", ("demo", "-o", LONG), "File name too long"),
        Row("outputs", (*KPOP, "--key", "x.txt"), "--key x.txt: give the file a name that ends in .safetensors"),
        Row("outputs", (*KPOP, "--key", "x.safetensors"), "is the edit's own file"),
        Row("outputs", (*KPOP, "--key", "nosuch/k.safetensors"), "does not exist"),
        Row("outputs", (*ESD, "--checkpoint-every", "5"), "needs --checkpoint FOLDER"),
        Row("outputs", (*ESD, "--checkpoint", "c", "--checkpoint-every", "0"), "--checkpoint-every 0: from 1"),
        Row("outputs", (*ESD, "--checkpoint", "c", "--checkpoint-every", "9" * 30), "--checkpoint-every 9+: from 1"),
    ]
    return rows


def models() -> list[Row]:
    """Return models that are not there, or are none."""
    wrong = [
        ("nosuch", "unknown model 'nosuch'"),
        ("mimi", "did you mean 'mini'"),
        ("digits:mnst", "did you mean 'digits:mnist'"),
        ("folder", "holds no model_index.json"),
        ("folder/nosuch", "no model at|unknown model"),
        ("text.txt", "is not a .safetensors"),
        ("model.ckpt", "is a pickle file"),
        ("model.bin", "is a pickle file"),
        ("nosuch.safetensors", "unknown model"),
        ("cut.safetensors", "truncated"),
        ("empty.safetensors", "not a safetensors file"),
        ("text.safetensors", "not a safetensors file"),
        ("huge.safetensors", "not a safetensors file"),
        ("", "unknown model ''|holds no model_index"),
        ("a/b/c", "no model at a/b/c"),
        ("../nosuch", "no model at"),
        (LONG, "File name too long|unknown model"),
        ("plain.safetensors", "is no|not a|no checkpoint|no model|family"),
    ]
    rows = []
    for name, says in wrong:
        rows += [
            Row("models", (*command, "--model", name), says)
            for command in (UCE, ("generate", "x"), ("erase", "sld", "church", *OUT))
        ]
    rows += [
        Row("models", (*UCE, "--device", "nosuch"), "unknown device 'nosuch'"),
        Row("models", (*UCE, "--device", "cuda"), "torch sees no CUDA device"),
        Row("models", (*UCE, "--device", "cpu:x"), "cannot be used|unknown device"),
        Row("models", (*UCE, "--device", "mps"), "cannot be used"),
        Row("models", (*UCE, "--dtype", "fp8"), "unknown dtype 'fp8'"),
        Row("models", (*UCE, "--stream"), "--stream reads a checkpoint folder or file"),
        Row("models", (*UCE, "--model", "org/nosuch-model"), "cannot load 'org/nosuch-model'"),
        Row("models", ("generate", "x", "--model", "org/nosuch-model"), "cannot load 'org/nosuch-model'"),
        Row("models", ("export", "plain.safetensors", "-m", "nosuch", "-o", "y"), "unknown model 'nosuch'"),
        Row("models", ("export", "plain.safetensors", "-m", "mini", "-o", "y"), "name a folder or a file to copy"),
        Row("models", ("export", "plain.safetensors", "-m", "org/name", "-o", "y"), "name a folder or a file to copy"),
        Row("models", ("export", "plain.safetensors", "-m", "model.ckpt", "-o", "y"), "is a pickle file"),
        Row("models", ("export", "plain.safetensors", "-m", "folder", "-o", "y"), "holds no model_index.json"),
        Row("models", ("evaluate", "plain.safetensors", "-m", "nosuch"), "unknown model 'nosuch'"),
        Row("models", ("purify", "text.png", "-e", "plain.safetensors", "-m", "nosuch"), "unknown model 'nosuch'"),
    ]
    return rows


def edits() -> list[Row]:
    """Return expressions and files that are no edits."""
    wrong = [
        ("nosuch.safetensors", "unknown edit file"),
        ("nosuch", "no such file"),
        ("folder.safetensors", "is a folder"),
        ("cut.safetensors", "truncated"),
        ("empty.safetensors", "not a safetensors file"),
        ("text.safetensors", "not a safetensors"),
        ("huge.safetensors", "not a safetensors"),
        ("plain.safetensors", "no edit|not an edit|format|edit"),
        ("text.txt", "not a safetensors file|is not"),
        ("", "no such file"),
        ("0", "no such file"),
        ("nan", "no such file"),
        ("plain.safetensors +", "ends too early"),
        ("+ + plain.safetensors", "cannot read"),
        ("* plain.safetensors", "cannot read"),
        ("(plain.safetensors", "a bracket is not closed"),
        ("plain.safetensors)", "is out of place"),
        ("2 + plain.safetensors", "a number cannot be added"),
        ("plain.safetensors * plain.safetensors", "cannot be multiplied"),
        ("2 / plain.safetensors", "only a number can divide"),
        ("plain.safetensors / 0", "divides by 0"),
        ("plain.safetensors / 0.0", "divides by 0"),
        ("plain.safetensors plain.safetensors", "is out of place"),
        ("1e400 * plain.safetensors", "a scale must be from"),
        ("1e300*1e300*plain.safetensors", "a scale must be from"),
        ("plain.safetensors / 1e-320", "a scale must be from"),
        ("1e7*plain.safetensors", "a scale must be from"),
        ("(" * 2000 + "plain.safetensors" + ")" * 2000, "nested too deep"),
        ("-" * 5000 + "plain.safetensors", "too many"),
        ("x**plain.safetensors", "cannot read"),
        ("nan*plain.safetensors", "cannot read|out of place"),
        ("plain.safetensors^2", "out of place"),
        (LONG, "no such file"),
        (f"{LONG}.safetensors", "File name too long|unknown edit file"),
    ]
    commands = {
        "combine": lambda e: ("combine", e, *OUT),
        "generate": lambda e: ("generate", "x", "-e", e),
        "evaluate": lambda e: ("evaluate", e),
    }
    rows = [
        Row("edits", make(e), says)
        for e, says in wrong
        for name, make in commands.items()
        if not (e.startswith("-") and name != "generate")
    ]
    rows += [
        Row("edits", ("generate", "x", "--key", "plain.safetensors"), "opens an edit: give the edit"),
        Row("edits", ("generate", "x", "--key-concept", "church"), "needs the key"),
        Row("edits", ("generate", "x", "-e", "plain.safetensors", "--key", "nosuch.safetensors"), "does not exist"),
        Row("edits", ("generate", "x", "-e", "plain.safetensors", "--key", "plain.safetensors"), "is not a key"),
        Row(
            "edits", ("generate", "x", "-e", "plain.safetensors", "--key", "cut.safetensors"), "truncated|is not a key"
        ),
        Row("edits", ("generate", "x", "-e", "plain.safetensors", "--key", "folder"), "is a folder"),
        Row("edits", ("generate", "x", "-e", "plain.safetensors", "--key", "model.ckpt"), "is a pickle file"),
        Row("edits", ("purify", "nosuch.png"), "no image at nosuch.png"),
        Row("edits", ("purify", "folder"), "no image at"),
        Row("edits", ("purify", "text.png"), "nothing to purify with"),
        Row("edits", ("purify", "text.png", "-e", "nosuch.safetensors"), "unknown edit file"),
        Row("edits", ("purify", "text.png", "-e", "cut.safetensors"), "truncated"),
    ]
    return rows


def sampling() -> list[Row]:
    """Return seeds and settings of the solver outside their ranges."""
    ranges = [
        ("", "is not a range of seeds"),
        ("x", "is not a range"),
        ("0:", "is not a range"),
        (":8", "is not a range"),
        ("0:8:2", "is not a range"),
        ("1.5", "is not a range"),
        ("5:5", "is empty"),
        ("8:0", "is empty"),
        ("0,0", "named twice"),
        ("0:4,3", "named twice"),
        ("0,,1", "is not a range"),
        (f"{2**63}", "whole number from 0"),
        ("9" * 5000, "whole number from 0"),
        ("0:999999999999999999", "more than 100000 seeds"),
        ("0:1000000", "more than 100000 seeds"),
        (f"0:{'9' * 5000}", "whole number from 0|more than"),
    ]
    rows = [Row("seeds", ("generate", "x", "--seeds", text), says) for text, says in ranges]
    rows += [
        Row("seeds", ("compare", "x", "-e", "plain.safetensors", "--seeds", text), says) for text, says in ranges[:6]
    ]
    for flag in ("--seeds", "--target-seeds", "--related-seeds", "--implicit-seeds", "--styled-seeds"):
        rows += [Row("seeds", ("evaluate", "plain.safetensors", flag, text), says) for text, says in ranges[6:11]]
    rows += [
        Row("seeds", ("generate", "x", "--seeds", "-1"), "whole number from 0|is not a range|unknown flag"),
        Row("seeds", ("generate", "x", "--seeds", "0:5000"), "more than 4096 images"),
        *(Row("seeds", (*UCE, "--seed", s), "--seed") for s in ("-1", f"{2**63}", "9" * 5000, "x", "1.5", "nan", "")),
    ]
    flags = [
        ("--steps", "0", "from 1 to 1000"),
        ("--steps", "-1", "from 1 to 1000"),
        ("--steps", "1001", "from 1 to 1000"),
        ("--steps", "x", "'x': a whole number"),
        ("--steps", "1e3", "a whole number"),
        ("--steps", "9" * 5000, "from 1|a whole number"),
        ("--guidance", "-1", "from 0 to 100"),
        ("--guidance", "101", "from 0 to 100"),
        ("--guidance", "nan", "from 0 to 100"),
        ("--guidance", "inf", "from 0 to 100"),
        ("--guidance", "1e308", "from 0 to 100"),
        ("--guidance", "x", "'x': a number"),
    ]
    embedded = [
        ("--embedded", "-1", "from 0 to 100"),
        ("--embedded", "nan", "from 0 to 100"),
        ("--embedded", "3.5", "reads no guidance scale as a number"),
    ]
    batch = [
        ("--batch", "0", "from 1 to 4096"),
        ("--batch", "-5", "from 1"),
        ("--batch", "1000000000000", "from 1 to 4096"),
    ]
    solver = [("--solver", "nosuch", "unknown solver 'nosuch'"), ("--solver", "dimm", "did you mean 'ddim'")]
    common = [("--dtype", "fp8", "unknown dtype"), ("--dtype", "", "unknown dtype")]
    for command, these in {
        ("generate", "x"): flags + embedded + batch + solver + common,
        ("compare", "x", "-e", "plain.safetensors"): flags[:3] + flags[6:8] + batch + solver,
        ("evaluate", "plain.safetensors"): flags[:3] + flags[6:10] + batch + solver + common,
        ("purify", "text.png", "-e", "plain.safetensors"): [
            *flags,
            ("--depth", "-0.1", "from 0 to 1"),
            ("--depth", "1.1", "from 0 to 1"),
            ("--depth", "nan", "from 0 to 1"),
        ],
        ("demo",): flags[:3] + flags[6:9] + solver,
    }.items():
        rows += [Row("sampling", (*command, flag, value), says) for flag, value, says in these]
    rows += [
        Row("sampling", ("generate", "x", "--solver", "pndm", "--steps", s), "cannot take [123] steps") for s in "123"
    ]
    return rows


def settings() -> list[Row]:
    """Return values outside the range of every numeric field of every method, and wrong words for every choice."""
    from efface import registry
    from efface.cli.fields import sheet

    rows = []
    for method in registry.names("methods"):
        command = ("erase", method, "church", *OUT)
        for field in sheet("methods", method).fields:
            if field.choices:
                rows.append(
                    Row("settings", (*command, field.flag, "nosuch"), f"unknown value of {field.flag} 'nosuch'")
                )
            elif field.type in (int, float):
                kind = "a whole number" if field.type is int else "a number"
                rows.append(Row("settings", (*command, field.flag, "x"), f"{field.flag} 'x': {kind}"))
                wild = ("-10000000", "1000000000000") if field.type is int else ("nan", "inf", "-1e300", "1e300")
                rows += [Row("settings", (*command, field.flag, w), rf"{field.flag} must be .*, got ") for w in wild]
    rows += [
        *(
            Row("settings", ("evaluate", "plain.safetensors", "--metric", text), says)
            for text, says in (
                ("sim", "unknown metric 'sim'"),
                ("ssim:paper", "unknown preset of ssim"),
                ("ssim,window", "'window' is no setting: write FIELD=VALUE"),
                ("ssim,side=3", "unknown field of ssim"),
                ("ssim,window=x", "window should be int"),
                ("ssim,window=4", "window must be odd"),
                ("lpips:kpop,weights=nosuch.safetensors", "nosuch.safetensors"),
                ("", "unknown metric ''"),
            )
        ),
        Row("settings", ("evaluate", "plain.safetensors", *("--metric", "psnr") * 2), "psnr is named twice"),
        Row("settings", (*UCE, "--templates", "no place"), "contains {}, the place of the name"),
        Row("settings", (*UCE, "--preserve-file", "nosuch.txt"), "cannot read the names in nosuch.txt"),
        Row("settings", (*UCE, "--preserve-file", "none.txt"), "none.txt has no names"),
        Row("settings", (*UCE, "--preserve-file", "latin.txt"), "cannot read the names in latin.txt"),
        Row("settings", (*UCE, "--preserve-file", "folder"), "cannot read the names in folder"),
        Row("settings", (*ESD, "--batch", "4", "--reuse", "3"), "reuse must divide batch 4, got 3"),
        Row("settings", (*ESD, "--erase-from", "x"), "erase_from needs around = concept"),
        Row("settings", ("erase", "kpop", "church", *OUT, "--batch", "4", "--reuse", "3"), "reuse must divide batch 4"),
        Row("settings", ("erase", "fmn", "church", *OUT, "--images", "0"), "nothing to train on"),
        Row("settings", ("erase", "rece", "church", *OUT, "--start", "none", "--epochs", "0"), "nothing is erased"),
        Row("settings", ("erase", "rece", "church", *OUT, "--judge", "x"), "is asked only when stop_below"),
        Row("settings", ("erase", "surgical", "church", *OUT, "--instruct", "x"), "an instruction looks like"),
        Row("settings", ("erase", "uce_debias", "church", *OUT, "--attributes", "a", "a"), "different attributes"),
        Row("settings", ("erase", "uce_debias", "church", *OUT, "--shares", "0.5", "0.6"), "add up to 1"),
    ]
    return rows


def attacks() -> list[Row]:
    """Return mistakes with attacks and findings, and values outside the range of every field of every attack."""
    from efface import registry
    from efface.cli.fields import sheet

    rows, on = [], ("--concept", "church", *OUT)
    for name in registry.names("attacks"):
        command = ("attack", name, *on)
        for field in sheet("attacks", name).fields:
            if field.choices:
                rows.append(Row("attacks", (*command, field.flag, "nosuch"), f"unknown value of {field.flag} 'nosuch'"))
            elif field.type in (int, float):
                kind = "a whole number" if field.type is int else "a number"
                rows.append(Row("attacks", (*command, field.flag, "x"), f"{field.flag} 'x': {kind}"))
                wild = ("-10000000", "1000000000000") if field.type is int else ("nan", "inf", "-1e300", "1e300")
                rows += [Row("attacks", (*command, field.flag, w), rf"{field.flag} must be .*, got ") for w in wild]
        rows.append(Row("attacks", (*command, "--preset", "nosuch"), "unknown preset|has no presets"))
    begin = ("attack", "inversion")
    more: list[tuple[tuple[str, ...], str]] = [
        (("attack", "nosuch", *on), "unknown attack 'nosuch'"),
        (("attack", "inversio", *on), "did you mean 'inversion'"),
        ((*begin, "--concept", "church"), "Missing option '--output'"),
        ((*begin, "--concept", "church", "-o", "x.txt"), "ends in .safetensors"),
        ((*begin, "--concept", "church", "-o", "nosuch/x.safetensors"), "does not exist"),
        ((*begin, *OUT), "name what to bring back as --concept"),
        ((*begin, "--concept", "chruch", *OUT), "did you mean 'church'"),
        ((*begin, "--concept", "weapon", *OUT), "is a family of"),
        ((*begin, "nosuch.safetensors", *on), "unknown edit file"),
        ((*begin, "cut.safetensors", *on), "truncated"),
        ((*begin, "text.txt", *on), "no such file|not a"),
        ((*begin, *on, "--model", "nosuch"), "unknown model 'nosuch'"),
        ((*begin, *on, "--judge", "nosuch"), "unknown judge of mini 'nosuch'"),
        ((*begin, *on, "--ask", "nosuch"), "unknown judge of mini 'nosuch'"),
        ((*begin, *on, "--seeds", "3:1"), "is empty"),
        ((*begin, *on, "--seeds", "0:5000"), "more than 1024 queries"),
        ((*begin, *on, "--seed", "-1"), "--seed"),
        ((*begin, *on, "--prompt", ""), "a prompt is empty"),
        ((*begin, *on, "--sheet", "x.jpg"), "ends in .png"),
        ((*begin, *on, "--query-steps", "0"), "from 1 to 1000"),
        ((*begin, *on, "--query-guidance", "nan"), "from 0 to 100"),
        ((*begin, *on, "--query-solver", "nosuch"), "unknown solver 'nosuch'"),
        ((*begin, *on, "--device", "nosuch"), "unknown device 'nosuch'"),
        ((*begin, *on, "--dtype", "nosuch"), "unknown dtype 'nosuch'"),
        ((*begin, *on, "--kind", "nosuch"), "unknown kind 'nosuch'"),
        ((*begin, *on, "--folder", "nosuch"), "no images in nosuch"),
        (("compare", "x", "-e", "plain.safetensors", "--finding", "nosuch.safetensors"), "plain|nosuch|missing"),
        ((*UCE, "--strength", "x"), "--strength 'x': a number, or auto"),
        ((*UCE, "--strength", "0"), "a number other than 0"),
        ((*UCE, "--strength", "nan"), "a number other than 0"),
        ((*UCE, "--es-below", "0.2"), "--es-below needs --strength auto"),
        ((*UCE, "--embeddings", "x.safetensors"), "--embeddings needs --strength auto"),
        ((*UCE, "--strength", "auto", "--es-below", "2"), "a cosine from -1 to 1"),
        ((*UCE, "--strength", "auto", "--embeddings", "x.txt"), "ends in .safetensors"),
    ]
    return rows + [Row("attacks", args, says) for args, says in more]


def benches() -> list[Row]:
    """Return mistakes with benches and reports."""
    more: list[tuple[tuple[str, ...], str]] = [
        (("bench",), "Missing argument 'FILE'"),
        (("bench", "nosuch.toml"), "no bench file at nosuch.toml"),
        (("bench", "text.txt"), "not valid TOML"),
        (("bench", "latin.txt"), "cannot read latin.txt"),
        (("bench", "folder"), "no bench file at folder"),
        (("bench", "wrong.toml"), "3 mistakes: line 1: unknown key 'modle'.*line 2.*line 3"),
        (("bench", "bench.toml", "--jobs", "0"), "from 1 to 256"),
        (("bench", "bench.toml", "--jobs", "2", "--ray", "local"), "give one"),
        (("bench", "bench.toml", "-o", "text.txt"), "cannot make the folder text.txt"),
        (("report",), "Missing argument 'FOLDER'"),
        (("report", "nosuch"), "no folder nosuch"),
        (("report", "text.txt"), "no folder text.txt"),
        (("report", "folder"), "is not the folder of a bench"),
        (("report", "folder", "-o", "x.pdf"), "ends in .html"),
        (("report", "folder", "-o", "nosuch/x.html"), "does not exist"),
    ]
    data = ("bench", "protocol:rece-artists", "--model", "org/nosuch-model", "--data")
    more += [
        (("bench", "protocol:nosuch"), "unknown protocol 'nosuch'"),
        (("bench", "protocol:kpop-object"), "did you mean 'kpop-objects'"),
        (("bench", "protocol:"), "unknown protocol ''"),
        (("bench", "protocol:neighbours", "--model", "digits:mnist"), r"for mini only, not for digits:mnist"),
        (("bench", "protocol:rece-artists", "--model", "org/x"), "--data artists=FILE.csv"),
        (
            ("bench", "protocol.toml"),
            "5 mistakes: concepts is missing.*table is missing.*line 2: paper.*line 5.*line 6",
        ),
        (("bench", "bench.toml", "--model", "nosuch"), "unknown model 'nosuch'"),
        (("bench", "bench.toml", "--judge", "nosuch"), "unknown judge of mini 'nosuch'"),
        (("bench", "bench.toml", "--judge", "resnet50:nosuch.safetensors"), "no file nosuch.safetensors"),
        (("bench", "bench.toml", "--judge", "clip_zero_shot"), "name it as clip_zero_shot:FOLDER"),
        (("bench", "bench.toml", "--judge", "clip_zero_shot:folder"), "holds no config.json"),
        ((*data, "artists"), "write NAME=FILE"),
        ((*data, "=x.csv"), "write NAME=FILE"),
        ((*data, "artists=nosuch.csv"), "no file nosuch.csv"),
        ((*data, "artists=words.csv"), "no column of prompts"),
        ((*data, "artists=words.csv", "artists=words.csv"), "given twice"),
    ]
    return [Row("benches", args, says) for args, says in more]


def audits() -> list[Row]:
    """Return mistakes with audits."""
    more: list[tuple[tuple[str, ...], str]] = [
        (("audit",), "Missing argument 'EDIT'"),
        (("audit", "nosuch.safetensors"), "unknown edit file"),
        (("audit", "cut.safetensors"), "truncated"),
        (("audit", "text.txt"), "no such file|not a"),
        (("audit", "plain.safetensors"), "no edit|not an edit|format|edit"),
        (("audit", "plain.safetensors", "--jobs", "0"), "from 1 to 256"),
        (("audit", "plain.safetensors", "--quick", "--protocol", "audit"), "give one"),
        (("audit", "plain.safetensors", "--protocol", "audti"), "did you mean 'audit'"),
        (("audit", "plain.safetensors", "--model", "nosuch"), "unknown model 'nosuch'"),
        (("audit", "plain.safetensors", "--data", "x"), "write NAME=FILE"),
        (("audit", "plain.safetensors", "--nosuch"), "unknown flag of efface audit '--nosuch'"),
    ]
    return [Row("audits", args, says) for args, says in more]


def exports() -> list[Row]:
    """Return wrong exports, and files that cannot be inspected."""
    export = ("export", "plain.safetensors")
    lora = (*export, "--to", "kohya-lora", *OUT)
    wrong: list[tuple[tuple[str, ...], str]] = [
        ((*export, *OUT), "can be of several formats: say which with --to"),
        ((*export, "-o", "x.png"), "can be of several formats"),
        ((*export, "--to", "nosuch", *OUT), "unknown format 'nosuch'"),
        ((*export, "--to", "lora", *OUT), "did you mean 'kohya-lora'|did you mean 'diffusers-lora'"),
        ((*export, "--to", "", *OUT), "can be of several formats"),
        ((*export, "--to", "kohya-lora"), "Missing option '--output'"),
        ((*export, "--to", "kohya-lora", "-o", "x"), "give the file a name that ends in .safetensors"),
        ((*export, "--to", "kohya-lora", "-o", "folder.safetensors"), "is a folder; name a .safetensors file"),
        ((*export, "--to", "kohya-lora", "-o", "nosuch/x.safetensors"), "does not exist; make it first"),
        ((*export, "--to", "diffusers-folder", "-o", "folder"), "is there already; name a new folder"),
        ((*export, "--to", "diffusers-folder", "-o", "nosuch/x"), "does not exist; make it first"),
        ((*export, "--to", "single-file", *OUT, "-m", "mini"), "name a folder or a file to copy"),
        ((*export, "--to", "diffusers-folder", "-o", "x", "-m", "plain.safetensors"), "is a file: --to single-file"),
        ((*lora, "-m", "nosuch"), "unknown model 'nosuch'"),
        ((*lora, "-m", "model.ckpt"), "is a pickle file"),
        ((*lora, "-m", "folder"), "holds no model_index.json"),
        ((*lora, "--rank", "0"), "--rank must be"),
        ((*lora, "--rank", "-3"), "--rank must be"),
        ((*lora, "--rank", "x"), "a whole number"),
        ((*lora, "--rank", "9" * 30), "--rank must be"),
        ((*lora, "--error", "0"), "--error must be"),
        ((*lora, "--error", "1"), "--error must be"),
        ((*lora, "--error", "nan"), "--error must be"),
        ((*lora, "--rank", "3", "--error", "0.1"), "give --rank 3 or --error 0.1, not both"),
        ((*lora, "--dtype", "fp8"), "unknown dtype 'fp8'"),
        ((*lora, "--check", "all"), "unknown value of --check 'all'"),
        ((*export, "--to", "diff", *OUT, "--rank", "3"), "--to diff has no --rank"),
        ((*export, "--to", "single-file", *OUT, "--dtype", "fp16"), "--to single-file has no --dtype"),
        ((*export, "--to", "diffusers-folder", "-o", "x", "--error", "0.1"), "--to diffusers-folder has no --error"),
        (lora, "not a valid edit|edit format"),
        (("export", "nosuch.safetensors", "--to", "diff", *OUT), "unknown edit file"),
        (("export", "cut.safetensors", "--to", "diff", *OUT), "truncated"),
        (("export", "folder.safetensors", "--to", "diff", *OUT), "is a folder"),
        (("inspect", "nosuch.safetensors"), "nosuch.safetensors does not exist"),
        (("inspect", "cut.safetensors"), "truncated"),
        (("inspect", "empty.safetensors"), "not a safetensors file"),
        (("inspect", "text.safetensors"), "not a safetensors file"),
        (("inspect", "huge.safetensors"), "not a safetensors file"),
        (("inspect", "plain.safetensors"), "has edit format None"),
        (("inspect", "folder"), "is not a diffusers folder"),
        (("inspect", "folder.safetensors"), "is not a diffusers folder"),
        (("inspect", "model.ckpt"), "is a pickle file"),
        (("inspect", "model.bin"), "is a pickle file"),
        (("inspect", "text.txt"), "of no kind that is known by its name"),
        (("inspect", "text.png"), "of no kind that is known by its name"),
        (("inspect", "other.safetensors"), "holds tensors of no kind that is known"),
        (("inspect", "list.json"), "is not valid JSON of an object"),
        (("inspect", "other.json"), "no record of efface"),
        (("inspect", "nosuch.json"), "does not exist|No such file"),
        (("inspect", LONG), "File name too long|does not exist"),
        (("inspect", ""), "no model_index|does not exist|not a diffusers folder"),
        (("inspect", "plain.safetensors", "-m", "nosuch"), "unknown model 'nosuch'"),
        (("inspect", "finding.safetensors", "-m", "mini"), "a finding of an attack, which is not applied to a model"),
    ]
    return [Row("exports and inspection", args, says) for args, says in wrong]


def all_rows() -> list[Row]:
    """Return the whole table."""
    parts = (usage, concepts, outputs, models, edits, sampling, settings, attacks, benches, audits, exports)
    return [row for part in parts for row in part()]


CALLS = {  # Python calls -> a pattern of the message of the EffaceError
    "efface.load(None)": "a model is a name or a path, got None",
    "efface.load(5)": "a model is a name or a path, got 5",
    "efface.load([])": "a model is a name or a path",
    "efface.load('mini', dtype='fp32')": "dtype is a torch.dtype",
    "efface.load('mini', device='nosuch')": "device 'nosuch' cannot be used",
    "efface.load('nosuch')": "unknown model 'nosuch'",
    "efface.erase(model, 5)": "erase takes a concept, a name, or several of them, got 5",
    "efface.erase(model, None)": "erase takes a concept, a name, or several of them, got None",
    "efface.erase(model, [5])": "a concept is a name or a Concept, got 5",
    "efface.erase(model, b'church')": "erase takes a concept",
    "efface.erase(model, {'name': 'church'})": "erase takes a concept",
    "efface.erase(model, [])": "nothing to erase",
    "efface.erase(model, '')": "unknown concept ''|needs a name",
    "efface.erase(model, 'church', method=None)": "unknown method 'None'",
    "efface.erase(model, 'church', method=5)": "unknown method '5'",
    "efface.erase(model, 'church', preset=None)": "unknown preset of uce 'None'",
    "efface.erase(model, 'church', preset=5)": "unknown preset of uce '5'",
    "efface.erase(model, 'church', preserve=5)": "preserve takes a concept",
    "efface.erase(model, 'church', preserve=None)": "preserve takes a concept",
    "efface.erase(model, 'church', preserve=[None])": "a concept is a name or a Concept, got None",
    "efface.erase(model, 'church', preserve=efface.Concept('church'))": "cannot both erase and preserve church",
    "efface.erase(model, 'church', preserve='church')": "cannot both erase and preserve church",
    "efface.erase(model, 'church', seed=None)": "a seed is a whole number",
    "efface.erase(model, 'church', seed=1.5)": "a seed is a whole number",
    "efface.erase(model, 'church', seed=10**5000)": "a seed is a whole number",
    "efface.erase(model, 'church', erase_scale='x')": "erase_scale should be float",
    "efface.erase(model, 'church', erase_scale=10**400)": "erase_scale must be a finite number",
    "efface.erase(model, 'church', erase_scale=None)": "erase_scale should be float",
    "efface.erase(model, 'church', templates='x')": "templates should be several values",
    "efface.erase(model, 'church', templates=5)": "templates should be several values",
    "efface.erase(model, 'church', templates=[5])": "templates should be str",
    "efface.erase(None, 'church')": "erase needs a Model",
    "efface.erase('mini', 'church')": "erase needs a Model",
    "efface.erase(model, 'church', nosuch=1)": "unknown field of uce 'nosuch'",
    "efface.Concept(5)": "a concept needs a name, got 5",
    "efface.Concept(None)": "a concept needs a name, got None",
    "efface.Concept('')": "a concept needs a name",
    "efface.Concept('a', prompts='b')": "prompts of the concept 'a' should be texts",
    "efface.Concept('a', prompts=(1,))": "prompts of the concept 'a' should be texts",
    "efface.Concept('a', kind='nosuch')": "unknown kind of concept 'nosuch'",
    "efface.Concept('a', kind=5)": "kind of the concept 'a' should be text",
    "efface.Concept('a', anchor=None)": "anchor of the concept 'a' should be text",
    "efface.Query(5)": "a prompt is a string, got 5",
    "efface.Query('a', seed='x')": "a seed is a whole number",
    "efface.Query('a', steps=0)": "steps is a whole number from 1 to 1000",
    "efface.Query('a', steps='x')": "steps is a whole number from 1 to 1000",
    "efface.Query('a', steps=10**5000)": "steps is a whole number from 1 to 1000",
    "efface.Query('a', guidance='x')": "guidance is a finite number",
    "efface.Query('a', guidance=None)": "guidance is a finite number",
    "efface.Query('a', guidance=float('nan'))": "guidance must be from -1000 to 1000",
    "efface.Query('a', guidance=10**400)": "guidance must be from -1000 to 1000",
    "efface.Query('a', solver='nosuch')": "unknown solver 'nosuch'",
    "efface.Query('a', solver=5)": "unknown solver '5'",
    "efface.Query('a', context=5)": "the context of a query is a Context, got 5",
    "model.generate([efface.Query('a', solver='pndm', steps=3)])": "cannot take 3 steps",
    "registry.get('methods', 'uce')()(None, 'church')": "a method needs a Model",
    "registry.get('methods', 'uce')()(model, 5)": "erase takes a concept",
    "registry.get('attacks', 'grid')()(None, 'church', 5)": "an attack starts from a Query or several, got 5",
    "registry.get('attacks', 'grid')()(None, 'church', [5])": "an attack starts from a Query",
    "registry.get('attacks', 'grid')()(None, 'church', [])": "at least one query",
    "registry.get('attacks', 'grid')()(None, 5, efface.Query('a'))": "a concept is a name or a Concept",
}
CALLS |= {
    "export(edit, 'nosuch', 'x.safetensors', model)": "unknown export 'nosuch'",
    "export(edit, 'kohya', 'x.safetensors', model)": "did you mean 'kohya_lora'",
    "export(edit, 'kohya-lora', 'x.safetensors', model, dtype='fp8')": "unknown value of dtype 'fp8'",
    "export(edit, 'kohya-lora', 'x.safetensors', model, rank=1.5)": "rank should be int, got 1.5",
    "export(edit, 'kohya-lora', 'x.safetensors', model, rank=0)": "rank must be",
    "export(edit, 'kohya-lora', 'x.safetensors', model, error=2.0)": "error must be",
    "export(edit, 'kohya-lora', 'x.safetensors', model, size=3)": "unknown field of kohya_lora 'size'",
    "export(edit, 'kohya-lora', 'x.safetensors', model, compare='all')": "compare is auto, outputs or weights",
    "export(edit, 'kohya-lora', 'x.safetensors', 5)": "int has no denoiser|a model is",
    "export(edit, 'kohya-lora', 'x.safetensors', 'nosuch')": "unknown model 'nosuch'",
    "export('a', 'kohya-lora', 'x.safetensors', model)": "an edit is an Edit, got 'a'",
    "export(edit, 'kohya-lora', 'nosuch/x.safetensors', model)": "cannot write",
    "export(edit, 5, 'x.safetensors', model)": "unknown export '5'",
    "inspect('nosuch.safetensors')": "does not exist",
    "model.generate(['a church'])": r"images are asked for by several Query, \[Query\(…\), …\], got \['a church'\]",
    "model.generate(efface.Query('a'))": "images are asked for by several Query",
    "model.generate([efface.Query('a')], batch=0)": "batch must be from 1 to 4096, got 0",
    "efface.attach('church.safetensors', model.pipe)": "an Edit is attached, got 'church.safetensors'",
    "edit.applied('mini').__enter__()": "an edit is applied to a Model, got 'mini'",
    "edit + 5": "only edits are added",
    "edit - 'a'": "only edits are added to and subtracted from an edit, got 'a'",
    "edit * 'a'": "an edit is scaled by a number, got 'a'",
    "edit * True": "an edit is scaled by a number",
    "edit.prune(only=5)": "patterns of weights are texts, got 5",
    "edit.prune(without=[5])": "patterns of weights are texts",
    "edit.save(5)": "a path is a text or a Path, got 5",
    "efface.Edit.load(5)": "a path is a text or a Path, got 5",
    "evaluate(model, edit, 5, {}, None)": "evaluate takes a concept, a name, or several of them, got 5",
    "evaluate(model, edit, 'church', {}, None)": "there is no concept table, or an empty one",
}
TAKEN = (  # what is accepted although it is no sequence
    "efface.erase(model, 'church', preserve='house')",
    "efface.erase(model, efface.Concept('church'), preserve=efface.Concept('house'))",
    "efface.erase(model, ('church', efface.Concept('dog')), preserve=iter(['house']))",
)


class Late(BaseException):
    """A row that is still working after LIMIT seconds."""


def answer(args: tuple[str, ...]) -> tuple[str, int, str]:
    """Return (how it ended, exit code, standard error) of a command line: line, lines, traceback, or accepted."""
    from efface.cli.app import run

    def late(*_: Any) -> None:
        raise Late

    out, err, code, how = io.StringIO(), io.StringIO(), -1, "line"
    handler = signal.signal(signal.SIGALRM, late)
    signal.alarm(LIMIT)
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            code = run(list(args))
    except Late:
        how = "accepted"
    except BaseException as error:
        how = f"traceback ({type(error).__name__})"
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, handler)
    said = err.getvalue()
    if how == "line" and code == 0:
        how = "accepted"
    if how == "line" and said.count("\n") != 1:
        how = "lines"
    return how, code, said


def call(source: str, names: dict[str, Any]) -> tuple[str, str]:
    """Return (how it ended, message) of a Python call: refused by efface, traceback, or accepted."""
    from efface.errors import EffaceError

    try:
        eval(source, names)
    except EffaceError as error:
        return "line", str(error)
    except Exception as error:
        return f"traceback ({type(error).__name__})", str(error)
    return "accepted", ""


def names() -> dict[str, Any]:
    """Return what the Python calls refer to."""
    import efface
    from efface import registry
    from efface.evaluation.evaluate import evaluate
    from efface.export import export_edit
    from efface.inspection.inspect import inspect

    model = efface.load("mini")
    known = {"efface": efface, "registry": registry, "export": export_edit, "inspect": inspect, "evaluate": evaluate}
    return {**known, "model": model, "edit": efface.erase(model, "church")}


def count(verbose: bool) -> None:
    """Run every row and print the counts."""
    import torch._dynamo  # noqa: F401  (an import must not be interrupted)

    known = names()
    counts: dict[str, Counter[str]] = defaultdict(Counter)
    with tempfile.TemporaryDirectory() as folder:
        os.environ["EFFACE_HOME"] = os.path.join(folder, "home")
        place = Path(folder, "work")
        place.mkdir()
        furnish(place)
        os.chdir(place)
        before = sorted(place.rglob("*"))
        for row in all_rows():
            how, _, said = answer(row.args)
            wrote = sorted(place.rglob("*")) != before
            for path in set(place.rglob("*")) - set(before):
                path.unlink() if path.is_file() else None
            if how == "line" and not re.search(row.says, said):
                how = "another message"
            counts[row.category][how.split(" (")[0]] += 1
            counts[row.category]["wrote"] += wrote
            if verbose and (how != "line" or wrote):
                shown = " ".join(arg if len(arg) < 60 else arg[:57] + "..." for arg in row.args)
                print(f"{how}{', wrote' * wrote}: efface {shown}\n    {said.strip()[:300]}", flush=True)
        for source in CALLS:
            how, said = call(source, known)
            if how == "line" and not re.search(CALLS[source], said):
                how = "another message"
            counts["Python calls"][how.split(" (")[0]] += 1
            if verbose and how != "line":
                print(f"{how}: {source}\n    {said[:300]}", flush=True)
        os.chdir("/")
    kinds = ("line", "another message", "lines", "traceback", "accepted", "wrote")
    total: Counter[str] = sum(counts.values(), Counter())
    print(f"{'':28}{'rows':>6}" + "".join(f"{kind:>17}" for kind in kinds))
    for name, found in [*counts.items(), ("all", total)]:
        rows = sum(n for kind, n in found.items() if kind != "wrote")
        print(f"{name:28}{rows:6}" + "".join(f"{found[kind]:17}" for kind in kinds))


if __name__ == "__main__":
    if "--calls" in sys.argv:
        known = names()
        print(json.dumps({source: call(source, known) for source in (*CALLS, *TAKEN)}))
    else:
        count("-v" in sys.argv)
