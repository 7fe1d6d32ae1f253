"""The command ``w2v-ray lm``: language models are built from text, compiled and described."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from w2v_ray.errors import LanguageModelError, OutputError

if TYPE_CHECKING:
    from w2v_ray.text.language_model import NgramModel

__all__ = ["add_commands", "main"]

_PLAIN_EVERY_S = 10.0  # between lines of progress where there is no terminal
_DEFAULT_ORDER = 4
_LARGEST_ORDER = 16

_EXAMPLES = """\
examples:
  w2v-ray lm build corpus.txt more.txt.gz --order 4 --prune 0 0 1 --output model.arpa
  w2v-ray lm compile model.arpa model.w2vlm
  w2v-ray lm info model.w2vlm
"""
_BUILD_NOTES = """\
Write the text as the acoustic model spells: the same alphabet and case, no punctuation that it does not
know, one sentence a line. Lines without words are left out. --prune 0 0 1 drops the 3-grams and longer ones
that occur once, which makes a model several times smaller.
"""


def add_commands(commands: Any, common: argparse.ArgumentParser) -> None:
    """Adds ``lm`` to the commands of an argument parser; ``common`` has the options of every command."""
    lm = commands.add_parser(
        "lm",
        help="build, compile and describe n-gram language models",
        description="Build, compile and describe the n-gram language models that text decoding uses.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parts = lm.add_subparsers(dest="lm_command", required=True, metavar="COMMAND")

    build = parts.add_parser(
        "build",
        parents=[common],
        help="make an ARPA model from text",
        description="Make an ARPA model from text: interpolated modified Kneser-Ney, as lmplz makes.",
        epilog=_BUILD_NOTES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    build.add_argument(
        "texts", nargs="+", metavar="TEXT", help="text file, plain or gzip, path or URL; - is standard input"
    )
    build.add_argument("--output", required=True, metavar="MODEL.arpa", help="file to write")
    build.add_argument(
        "--order",
        type=int,
        default=_DEFAULT_ORDER,
        metavar="N",
        help="words of the longest n-grams (default: %(default)s)",
    )
    build.add_argument(
        "--prune",
        type=_threshold,
        nargs="+",
        default=[0],
        metavar="N",
        help="by order, drop n-grams that occur no more than N times; the last N also stands for the orders "
        "after it, and the first must be 0 (default: 0, drop none)",
    )
    build.add_argument(
        "--discount-fallback",
        type=_discount,
        nargs="*",
        metavar="D",
        help="three discounts, of n-grams that count once, twice and more often, for small texts where they "
        "cannot be estimated (without numbers: 0.5 1 1.5)",
    )
    build.add_argument(
        "--perplexity-of",
        metavar="TEXT",
        help="held-out text to say the perplexity of (default: the text itself)",
    )

    compiled = parts.add_parser(
        "compile",
        parents=[common],
        help="make a compiled model, which opens in milliseconds and is shared by all processes of a machine",
        description="Make a compiled model from an ARPA file. It opens in milliseconds, and all processes of "
        "a machine share its memory.",
    )
    compiled.add_argument("model", metavar="MODEL.arpa", help="ARPA file, plain or gzip, path or URL")
    compiled.add_argument("output", metavar="MODEL.w2vlm", help="file to write")

    info = parts.add_parser(
        "info",
        parents=[common],
        help="say what a model holds",
        description="Say what a model holds. Of a compiled model, every byte is checked.",
    )
    info.add_argument("model", metavar="MODEL", help="ARPA, compiled or KenLM binary file, path or URL")


def main(args: argparse.Namespace) -> int:
    """Runs one of the commands below ``lm`` and returns its exit code."""
    commands = {"build": _build, "compile": _compile, "info": _info}
    found, lines = commands[args.lm_command](args)
    print(json.dumps(found) if args.json else "\n".join(lines))
    return 0


def _build(args: argparse.Namespace) -> tuple[dict[str, Any], list[str]]:
    from w2v_ray.text.kneser_ney import FALLBACK_DISCOUNTS, check_settings, estimate, write_arpa
    from w2v_ray.text.language_model import open_language_model
    from w2v_ray.text.ngram_counts import count_ngrams, read_blocks

    if not 1 <= args.order <= _LARGEST_ORDER:
        raise LanguageModelError(
            f"--order {args.order} is not from 1 to {_LARGEST_ORDER}; most models have 3 to 5"
        )
    fallback = args.discount_fallback
    if fallback == []:
        fallback = FALLBACK_DISCOUNTS
    check_settings(args.order, args.prune, fallback)
    if args.output.endswith(".w2vlm"):
        raise OutputError(
            f"--output {args.output!r} is the name of a compiled model, and build writes ARPA; "
            "name it .arpa and run w2v-ray lm compile on it"
        )
    output = _writable(args.output, [*args.texts, args.perplexity_of or "-"])
    with _shown_progress(quiet=args.json) as on_progress:
        counts = count_ngrams(read_blocks(args.texts), args.order, on_progress=on_progress)
        model = estimate(counts, prune=args.prune, discount_fallback=fallback, on_progress=on_progress)
        write_arpa(model, output, on_progress=on_progress)
        perplexity, of = model.perplexity, "the text itself"
        num_unknown = 0
        if args.perplexity_of:
            on_progress(f"scoring {args.perplexity_of}")
            perplexity, num_unknown = _perplexity(open_language_model(output), args.perplexity_of)
            of = args.perplexity_of
    found = {
        "output": str(output),
        "num_ngrams": model.num_ngrams,
        "num_ngrams_before_pruning": [len(table) for table in counts.tables],
        "discounts": [[round(d, 6) for d in each] for each in model.discounts],
        "num_words": counts.num_words,
        "num_sentences": counts.num_sentences,
        "perplexity": perplexity,
        "perplexity_of": of,
        "num_unknown": num_unknown,
    }
    lines = [
        f"{counts.num_words:,} words in {counts.num_sentences:,} sentences, "
        f"{len(counts.words) - 3:,} different"
    ]
    for n, (number, table, d) in enumerate(
        zip(model.num_ngrams, counts.tables, model.discounts, strict=True), 1
    ):
        pruned = f" of {len(table):,}" if number != len(table) else ""
        lines.append(f"  {n}-grams  {number:>12,}{pruned}, discounts {d[0]:.3f} {d[1]:.3f} {d[2]:.3f}")
    unknown = f", {num_unknown:,} of its words unknown" if num_unknown else ""
    lines.append(f"perplexity of {of}: {perplexity:.1f}{unknown}")
    lines.append(f"wrote {output} ({_megabytes(output.stat().st_size)})")
    return found, lines


def _threshold(text: str) -> int:
    return int(_number(int, text))


def _discount(text: str) -> float:
    return _number(float, text)


def _number(kind: type[int] | type[float], text: str) -> float:
    """The value of an option that takes several numbers, and so also a text that follows them."""
    try:
        return kind(text)
    except ValueError:
        name = "whole number" if kind is int else "number"
        raise argparse.ArgumentTypeError(
            f"{text!r} is no {name}; if it is a text, put it before this option"
        ) from None


def _perplexity(model: Any, path: str) -> tuple[float, int]:
    """The perplexity of a text, ``</s>`` and unknown words included, and how many of the latter it has."""
    from w2v_ray.text.ngram_counts import read_blocks

    log10_prob, num_predicted, num_unknown = 0.0, 0, 0
    for _, block in read_blocks([path]):
        prob, words, sentences, _, unknown = model.score_text(block)
        log10_prob, num_predicted, num_unknown = (
            log10_prob + prob,
            num_predicted + words + sentences,
            num_unknown + unknown,
        )
    if not num_predicted:
        raise LanguageModelError(f"{path!r} holds no words; name a text with a sentence on every line")
    return float(10 ** (-log10_prob / num_predicted)), num_unknown


def _compile(args: argparse.Namespace) -> tuple[dict[str, Any], list[str]]:
    from w2v_ray.text.language_model import KenlmModel, open_language_model

    output = _writable(args.output, [args.model])
    with _shown_progress(quiet=args.json) as on_progress:
        on_progress(f"reading {args.model}")
        model = open_language_model(args.model)
        if isinstance(model, KenlmModel):
            raise LanguageModelError(
                f"{args.model} is a KenLM binary file, which does not list its n-grams; "
                "compile the ARPA file it was made from"
            )
        on_progress(f"writing {args.output}")
        try:
            model.save(output)
        except OSError as error:
            raise OutputError(
                f"{args.output} cannot be written ({error.strerror}); free or name another place"
            ) from error
    found = _described(model) | {"output": str(output)}
    lines = [f"wrote {output}: {_grams(model)}, {len(model.words()):,} words, {_megabytes(model.nbytes)}"]
    return found, lines


def _info(args: argparse.Namespace) -> tuple[dict[str, Any], list[str]]:
    from w2v_ray.text.language_model import KenlmModel, open_language_model

    start = time.perf_counter()
    model = open_language_model(args.model)
    seconds = time.perf_counter() - start
    if isinstance(model, KenlmModel):
        found: dict[str, Any] = {"kind": "KenLM binary", "order": model.order}
        return found, [f"KenLM binary file of order {model.order}; it does not list its n-grams and words"]
    is_compiled = model.path is not None
    if is_compiled and not model.is_intact():
        raise LanguageModelError(
            f"{args.model}: its checksum is wrong, so it is damaged; compile or copy it again"
        )
    found = (
        {"kind": "compiled" if is_compiled else "ARPA"} | _described(model) | {"open_s": round(seconds, 4)}
    )
    words = model.words()
    lines = [
        f"{found['kind']} model of order {model.order}, opened in {seconds:.3g} s"
        + (", checksum right" if is_compiled else ""),
        *(f"  {n}-grams  {number:>12,}" for n, number in enumerate(model.num_ngrams, 1)),
        f"{len(words):,} words, {model.num_states:,} states, {_megabytes(model.nbytes)} in memory",
        f"its first words: {_printable(words[:12])}",
    ]
    return found, lines


def _described(model: NgramModel) -> dict[str, Any]:
    return {
        "order": model.order,
        "num_ngrams": model.num_ngrams,
        "num_words": len(model.words()),
        "num_states": model.num_states,
        "nbytes": model.nbytes,
    }


def _grams(model: NgramModel) -> str:
    return ", ".join(f"{number:,} {n}-grams" for n, number in enumerate(model.num_ngrams, 1))


def _printable(words: list[str]) -> str:
    return " ".join(words).encode(errors="backslashreplace").decode()


def _megabytes(size: int) -> str:
    return f"{size / 1e6:.1f} MB" if size >= 1e5 else f"{size:,} bytes"


def _writable(output: str, inputs: list[str]) -> Path:
    """The path of a file that can be written, so that nobody waits for hours to learn that it cannot."""
    path = Path(output).expanduser()
    if path.is_dir():
        raise OutputError(f"{output!r} is a folder; name a file in it")
    if not os.access(path.parent, os.W_OK | os.X_OK):
        raise OutputError(f"the folder of {output!r} does not exist or may not be written; make it first")
    if path.exists() and any(os.path.exists(name) and path.samefile(name) for name in inputs):
        raise OutputError(f"{output!r} is also what would be read; name another file to write")
    return path


@contextlib.contextmanager
def _shown_progress(*, quiet: bool) -> Iterator[Callable[[str], None]]:
    """What is being done, on standard error: in one changing line of a terminal, or a line now and then."""
    if quiet:
        yield lambda _: None
    elif sys.stderr.isatty():
        from rich.console import Console

        with Console(stderr=True).status("starting") as status:
            yield lambda text: status.update(text.replace("[", r"\["))
    else:
        last = time.monotonic()

        def show(text: str) -> None:
            nonlocal last
            if time.monotonic() - last >= _PLAIN_EVERY_S:
                last = time.monotonic()
                print(text, file=sys.stderr, flush=True)

        yield show
