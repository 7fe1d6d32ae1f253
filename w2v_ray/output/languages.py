"""Which language each recording is in, as a job with a language-identification checkpoint has found."""

from __future__ import annotations

import json
from collections import Counter, defaultdict

from w2v_ray import stores
from w2v_ray.errors import OutputError
from w2v_ray.output.rows import current_rows
from w2v_ray.plan.records import read_job, table_of, tables_beside
from w2v_ray.schema import LANGUAGE_ERROR_KEY, LANGUAGE_KEY

__all__ = ["SpokenLanguages", "spoken_languages_fingerprint"]

_TABLE = "labels"


def spoken_languages_fingerprint(output: str) -> str:
    """The fingerprint of the job that told the languages.

    Raises:
        OutputError: The output has no labels.
    """
    fingerprint, job = read_job(stores.canonical(output))
    if _TABLE not in (found := (table_of(job), *tables_beside(job))):
        raise OutputError(
            f"languages_from is {output!r}, which holds {' and '.join(found)}; name the output of w2v-ray "
            "classify with a language-identification checkpoint"
        )
    return fingerprint


class SpokenLanguages:
    """The language of each recording of an output: the label with most seconds of score over all its rows.

    Args:
        output: Of ``w2v-ray classify``: a folder or URL.

    Attributes:
        languages: By recording.
        reasons: Why there is none, by recording that was rejected or that no label was given.

    Raises:
        OutputError: It is no such output, or a file of it cannot be read.
    """

    def __init__(self, output: str) -> None:
        self._output = output
        spoken_languages_fingerprint(output)
        self.languages: dict[str, str] = {}
        self.reasons: dict[str, str] = {}
        for rows in current_rows(output, _TABLE):
            totals: defaultdict[str, Counter[str]] = defaultdict(Counter)
            columns = (rows.column(name).to_pylist() for name in ("recording_id", "duration_s", "labels"))
            for recording, duration_s, labels in zip(*columns, strict=True):
                for label in labels or ():
                    totals[recording][label["label"]] += duration_s * label["score"]
            for recording in dict.fromkeys(rows.column("recording_id").to_pylist()):
                if totals[recording]:
                    most = max(totals[recording].values())
                    self.languages[recording] = min(k for k, v in totals[recording].items() if v == most)
                else:
                    self.reasons[recording] = "no label reached the threshold of that job"
        for rows in current_rows(output, "rejects"):
            columns = (rows.column(name).to_pylist() for name in ("recording_id", "error_class", "message"))
            for recording, error_class, message in zip(*columns, strict=True):
                if recording not in self.languages:
                    self.reasons.setdefault(recording, f"it was rejected there ({error_class}: {message})")

    def annotate(self, recording_id: str, metadata: str | None, *, key: str | None = None) -> str:
        """The metadata of a recording with its language, or with the reason that there is none.

        Args:
            recording_id: Of the recording.
            metadata: A JSON object, or None.
            key: Of a language in it that counts more; None: there is none.
        """
        values = json.loads(metadata) if metadata else {}
        for name in (LANGUAGE_KEY, LANGUAGE_ERROR_KEY):  # of whoever made the input
            values.pop(name, None)
        if key is None or values.get(key) is None:
            if recording_id in self.languages:
                values[LANGUAGE_KEY] = self.languages[recording_id]
            else:
                reason = self.reasons.get(recording_id, "it has no row of this recording")
                values[LANGUAGE_ERROR_KEY] = (
                    f"languages_from {self._output!r} tells no language: {reason}; run that job on what it "
                    "lacks, and this one again with --on-change new"
                )
        return json.dumps(values)
