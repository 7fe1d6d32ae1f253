"""A report to look at: one HTML page of what a job has made, from its tables and the records of its runs."""

from __future__ import annotations

from w2v_ray import __version__, stores
from w2v_ray.plan.records import read_job
from w2v_ray.report.page import render
from w2v_ray.report.summary import Report, summarize
from w2v_ray.result_files import check_result, write_lines

__all__ = ["Report", "render", "report_place", "summarize", "write_report"]

_FILE = "report.html"


def report_place(source: str) -> str:
    """Where the report of an output goes: into the folder, or of a URL, into the working folder here."""
    return stores.join(source, _FILE) if stores.is_local(source) else _FILE


def write_report(
    source: str,
    output: str | None = None,
    *,
    reference: str | None = None,
    text_key: str | None = None,
    speaker_key: str | None = None,
    clusters: str | None = None,
) -> Report:
    """Writes one HTML page about an output, which opens without a server, a network or a script.

    Rows are read once, some shards at a time: memory is needed for these and the plan alone.

    Args:
        source: The output of a job: folder or URL. What it has published so far is shown.
        output: The file or URL to write; None: ``report.html`` in ``source``, or of a URL in the working
            folder.
        reference: A table with what was said in recordings: CSV or TSV with a header, or JSON lines, with
            recordings in ``recording_id``, ``id``, ``audio_filepath``, ``file_name``, ``file`` or ``path``.
        text_key: The column or key of texts in ``reference``, ``text`` by default; without ``reference``, the
            key of the manifest's metadata that holds what was said.
        speaker_key: The key of the metadata that says who speaks, for the colours of the embedding map and
            the interval of the word error rate.
        clusters: A table of speakers, as ``w2v-ray cluster`` writes it, for the colours instead.

    Returns:
        The numbers that the page shows.

    Raises:
        ConfigError: ``source`` has nothing to compare with references, or to colour.
        InputError: A table cannot be read, or names a recording that may be several.
        OutputError: ``source`` is no output that can be read, or ``output`` cannot be written.
    """
    place = output or report_place(source)
    if (reason := stores.refusal(source)) is None:
        read_job(stores.canonical(source))  # what is no output is told first
        check_result(place)
    report = summarize(
        source, reference=reference, text_key=text_key, speaker_key=speaker_key, clusters=clusters
    )
    assert reason is None, "summarize refuses it"
    write_lines([render(report, version=__version__)], place)
    return report
