"""What a person sees at the end of the demo: what was said beside what was recognised, speakers and words."""

from __future__ import annotations

from difflib import SequenceMatcher

import numpy as np
from rich.console import Console
from rich.table import Table
from rich.text import Text

from w2v_ray import demo
from w2v_ray.metrics import WordErrors, word_errors

__all__ = ["show_demo"]


def show_demo(output: str) -> None:
    """What was said beside what was recognised without and with a language model, and what to do next."""
    console = Console(highlight=False, markup=False, emoji=False)
    titles = {"greedy": output, "with a language model": demo.redecoded(output)}
    table = Table("said", *titles, title="what was said, what was recognised and how sure", show_lines=True)
    totals = dict.fromkeys(titles, WordErrors())
    found = {title: list(demo.results(place)) for title, place in titles.items()}
    for rows in zip(*found.values(), strict=True):
        said = rows[0][0]
        cells = []
        for title, (_, recognised, confidence) in zip(titles, rows, strict=True):
            totals[title] += word_errors(said, recognised)
            cell = _marked(said, recognised)
            cells.append(cell if confidence is None else cell.append(f"{confidence:.2f}", "dim"))
        table.add_row(said, *cells)
    console.print(table)
    console.print("word error rate, by speakers the checkpoint never heard:")
    for title, total in totals.items():
        console.print(
            f"  {total.rate:6.1%} {title}: {total.substitutions} substituted, {total.deletions} deleted, "
            f"{total.insertions} inserted of {total.num_reference} words"
        )
    _show_speakers(console, output)
    _show_words(console, output)
    console.print(
        f"\nthe tables are in {output}/transcripts and {output}/embeddings, those with the language model in "
        f"{demo.redecoded(output)}, labels in {demo.keywords(output)}; read them with any Parquet reader:\n",
        soft_wrap=True,
    )
    console.print(
        f"  python -c \"import pandas; print(pandas.read_parquet('{output}/transcripts'))\"\n", soft_wrap=True
    )
    console.print("or have them as captions, one of ten formats that it writes:\n")
    console.print(
        f"  w2v-ray export {output} --format srt --output {output.rstrip('/')}-captions\n", soft_wrap=True
    )
    console.print("now on your own files, with a checkpoint of general English from the Hugging Face hub:\n")
    console.print(
        "  w2v-ray transcribe YOUR_FOLDER --output out --model facebook/wav2vec2-base-960h\n", soft_wrap=True
    )


def _show_speakers(console: Console, output: str) -> None:
    """How well the vectors of the demo's recordings tell its speakers apart."""
    found = demo.speakers(output)
    names = np.array([name for name, _ in found])
    cosines = np.stack([vector for _, vector in found])
    cosines = cosines @ cosines.T
    np.fill_diagonal(cosines, -1)
    several = [row for row, name in enumerate(names) if (names == name).sum() > 1]
    right = sum(names[cosines[row].argmax()] == names[row] for row in several)
    figures = demo.held_out("speaker", "test LibriSpeech, 10 s")
    low, high = figures["eer_interval_95"]
    console.print(
        f"\nspeakers, by vectors from the same pass: of {len(several)} recordings whose speaker has another, "
        f"{right} are nearest to one of them among all {len(names)}",
        soft_wrap=True,
    )
    console.print(
        f"  {figures['eer']:6.1%} equal error rate ({low:.1%} to {high:.1%}) on {figures['num_speakers']} "
        "held-out speakers of LibriSpeech, 10 s each, as pipelines/train_demo_heads.py measured it",
        soft_wrap=True,
    )


def _show_words(console: Console, output: str) -> None:
    """How many of the demo's single words got their label."""
    found = demo.named_words(output)
    right = sum(said == label for said, label, _ in found)
    wrong = [f"{said} taken for {label} ({score:.2f})" for said, label, score in found if said != label]
    figures = demo.held_out("keywords", "test Speech Commands")
    low, high = figures["interval_95"]
    console.print(
        f"\nsingle words, by a classifier: {right} of {len(found)} are named right"
        + (f"; {', '.join(wrong)}" if wrong else ""),
        soft_wrap=True,
    )
    console.print(
        f"  {figures['accuracy']:6.1%} accuracy ({low:.1%} to {high:.1%}) on {figures['num_clips']} words of "
        f"{figures['num_speakers']} held-out speakers, as pipelines/train_demo_heads.py measured it",
        soft_wrap=True,
    )


def _marked(said: str, recognised: str) -> Text:
    """The recognised words, those that were not said so in red."""
    marked = Text()
    expected, found = said.split(), recognised.split()
    for tag, _, _, start, end in SequenceMatcher(a=expected, b=found, autojunk=False).get_opcodes():
        for word in found[start:end]:
            marked.append(word + " ", None if tag == "equal" else "bold red")
        if tag == "delete":
            marked.append("_ ", "bold red")
    return marked
