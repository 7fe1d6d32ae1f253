"""``verify``, ``cluster`` and ``nearest``: what they read, write, say and refuse."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from sklearn.metrics import roc_curve

from tests.speaker_outputs import embedded, embeddings_output, table_of, utterances, voices
from w2v_ray import InputError, read_embeddings
from w2v_ray.cli import main
from w2v_ray.embeddings import embedding_matrix, read_trials, verify

SPEAKERS = [0, 0, 0, 1, 1, 2, 2, 2, 3]
NAMES = [f"/archive/s{speaker}/{number} a.wav" for number, speaker in enumerate(SPEAKERS)]


@pytest.fixture(scope="module")
def output(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Recordings of four speakers, of two segments each, and one that has no embedding."""
    vectors = utterances([s for s in SPEAKERS for _ in range(2)], noise=0.25)
    recordings = {
        name: [embedded(0, 2, vectors[2 * n]), embedded(2, 3, vectors[2 * n + 1])]
        for n, name in enumerate(NAMES)
    }
    recordings["/archive/silent.wav"] = [embedded(0, 1, None)]
    return embeddings_output(tmp_path_factory.mktemp("embeddings") / "out", recordings)


def run(capsys: pytest.CaptureFixture[str], *args: object) -> tuple[int, str, str]:
    code = main([str(arg) for arg in args])
    said = capsys.readouterr()
    return code, said.out, said.err


def all_trials() -> list[tuple[int, int, bool]]:
    return [(i, j, SPEAKERS[i] == SPEAKERS[j]) for i in range(len(SPEAKERS)) for j in range(i)]


# ---- verify


def test_trials_of_both_forms_are_scored_alike(
    output: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = {
        "voxceleb.txt": '{label} "{one}" "{other}"',
        "tabs.txt": "{label}\t{one}\t{other}",
        "kaldi.txt": '"{one}" "{other}" {word}',
        "ends.txt": "{one_end}\t{other_end}\t{word}",
    }
    found, scores = [], []
    for file, line in lines.items():
        text = "\n".join(
            line.format(
                label=int(same),
                word="target" if same else "nontarget",
                one=NAMES[i],
                other=NAMES[j],
                one_end=NAMES[i].rpartition("/")[2],
                other_end=NAMES[j].rpartition("/")[2].removesuffix(".wav"),
            )
            for i, j, same in all_trials()
        )
        (tmp_path / file).write_text(text + "\n\n")
        arguments = ["verify", tmp_path / file, "--embeddings", output, "--scores", tmp_path / "s.tsv"]
        code, out, _ = run(capsys, *arguments, "--json")
        assert code == 0
        found.append(json.loads(out))
        rows = [line.split("\t") for line in (tmp_path / "s.tsv").read_text().splitlines()]
        assert [row[3] == "target" for row in rows] == [same for *_, same in all_trials()]
        scores.append([float(row[2]) for row in rows])
    assert not (tmp_path / "_tmp").exists()
    assert found[0] == found[1] == found[2] == found[3]
    assert scores[0] == scores[1] == scores[2] == scores[3]

    matrix = embedding_matrix(read_embeddings(output))
    expected = [float(matrix[i] @ matrix[j]) for i, j, _ in all_trials()]
    assert scores[0] == pytest.approx(expected, abs=1e-6)
    false_alarms, hits, _ = roc_curve([same for *_, same in all_trials()], expected, drop_intermediate=False)
    crossing = np.argmax(1 - hits <= false_alarms)
    assert false_alarms[crossing - 1] <= found[0]["eer"] <= false_alarms[crossing]
    costs = {p: min(p * (1 - hits) + (1 - p) * false_alarms) / p for p in (0.01, 0.05)}
    assert {cost["p_target"]: cost["cost"] for cost in found[0]["min_dcf"]} == pytest.approx(costs)
    assert (found[0]["num_targets"], found[0]["num_nontargets"], found[0]["num_missing"]) == (7, 29, 0)

    code, out, _ = run(capsys, *arguments, "--p-target", 0.5, 0.001)
    assert code == 0
    assert out.splitlines()[0] == "trials  36: 7 of one speaker, 29 of two"
    assert re.search(r"^EER     \d+\.\d\d% at threshold 0\.\d{4}$", out, re.MULTILINE)
    assert re.findall(r"minDCF  [\d.]+ for p_target (\S+) at", out) == ["0.5", "0.001"]


def test_segments_are_verified_by_their_ids(
    output: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ids = read_embeddings(output, per="segment").column("segment_id").to_pylist()
    (tmp_path / "t.txt").write_text(f"1\t{ids[0]}\t{ids[1]}\n0\t{ids[0]}\t{ids[-1]}\n")
    code, out, _ = run(capsys, "verify", tmp_path / "t.txt", "--embeddings", output, "--per", "segment")
    assert code == 0
    assert "EER     0.00%" in out


def test_trials_without_an_embedding_are_an_error_unless_skipped(
    output: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trials = tmp_path / "t.txt"
    trials.write_text(
        f"1\t{NAMES[0]}\t{NAMES[1]}\n0\t{NAMES[0]}\t{NAMES[3]}\n1\tsilent\t{NAMES[1]}\n0\t{NAMES[1]}\tgone\n"
    )
    arguments = ["verify", trials, "--embeddings", output, "--scores", tmp_path / "scores"]
    code, _, err = run(capsys, *arguments)
    assert code == 2
    assert "2 of 4 trials" in err
    assert "2 names in all, such as 'silent'" in err
    assert "--skip-missing" in err
    assert not (tmp_path / "scores").exists()
    code, out, _ = run(capsys, *arguments, "--skip-missing")
    assert code == 0
    assert "missing 2 more trials" in out
    assert len((tmp_path / "scores").read_text().splitlines()) == 2
    trials.write_text(f"1\t{NAMES[0]}\t{NAMES[1]}\n0\t{NAMES[1]}\tgone\n")
    code, _, err = run(capsys, *arguments, "--skip-missing")
    assert code == 2
    assert "1 of the 1 trials" in err


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("", "holds no trials"),
        ("1 a b\n\na b\n", "line 3 is 'a b', expected '1 NAME NAME' or 'NAME NAME target'"),
        ("2 a b\n", "line 1 is '2 a b'"),
        ("1 a b c\n", "line 1"),
        ("a b same\n", "line 1"),
    ],
)
def test_what_is_no_trial_is_refused(tmp_path: Path, text: str, complaint: str) -> None:
    (tmp_path / "t.txt").write_text(text)
    with pytest.raises(InputError, match=complaint):
        read_trials(str(tmp_path / "t.txt"))


def test_names_that_may_be_several_are_refused(tmp_path: Path) -> None:
    (tmp_path / "t.txt").write_text("1 x.wav b\n")
    table = table_of(voices(3), ["/1/x.wav", "/2/x.wav", "b"])
    with pytest.raises(InputError, match=r"'x.wav', which may be '/1/x.wav' or '/2/x.wav'"):
        verify(read_trials(str(tmp_path / "t.txt")), table)


def test_refusals_of_verify_come_before_the_work(
    output: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "t.txt").write_text(f"1\t{NAMES[0]}\t{NAMES[1]}\n0\t{NAMES[0]}\t{NAMES[3]}\n")
    arguments = ["verify", tmp_path / "t.txt", "--embeddings", output]
    for more, complaint in [
        (["--scores", tmp_path], "is a folder; name a file in it"),
        (["--scores", tmp_path / "gone" / "s"], "does not exist or may not be written"),
        (["--p-target", "1"], "p_target is 1.0"),
    ]:
        code, _, err = run(capsys, *arguments, *more)
        assert (code, err.count("\n")) == (2, 1)
        assert complaint in err
    code, _, err = run(capsys, "verify", tmp_path / "gone.txt", "--embeddings", output)
    assert code == 2
    assert "gone.txt" in err


def test_scores_of_more_trials_than_a_block_holds(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    pairs = generator.integers(0, 9, (70_000, 2))
    lines = (f"{int(SPEAKERS[i] == SPEAKERS[j])} {i} {j}" for i, j in pairs)
    (tmp_path / "t.txt").write_text("\n".join(lines))
    table = table_of(utterances(SPEAKERS, noise=0.3), [str(n) for n in range(9)])
    found = verify(read_trials(str(tmp_path / "t.txt")), table)
    matrix = embedding_matrix(table)
    assert found.scores == pytest.approx((matrix @ matrix.T)[pairs[:, 0], pairs[:, 1]], abs=1e-6)


# ---- cluster


def test_speakers_are_written_as_a_table(
    output: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target = tmp_path / "speakers.parquet"
    code, out, _ = run(capsys, "cluster", output, "--output", target, "--num-speakers", 4)
    assert code == 0
    assert out.splitlines()[:2] == ["4 speakers in 9 recordings", "  speaker-0001  3"]
    assert out.splitlines()[-1] == f"written to {target}"
    assert [path.name for path in tmp_path.iterdir()] == ["speakers.parquet"]
    rows = pq.read_table(target).to_pylist()
    assert [row["recording_id"] for row in rows] == NAMES
    speakers = [f"speaker-000{[0, 2, 1, 3].index(speaker) + 1}" for speaker in SPEAKERS]
    assert [row["speaker"] for row in rows] == speakers

    arguments = ["cluster", output, "--output", target, "--per", "segment", "--json"]
    code, out, _ = run(capsys, *arguments, "--method", "hdbscan", "--min-size", "4")
    assert code == 0
    found = json.loads(out)
    assert sum(found["sizes"].values()) + found["num_without_speaker"] == found["num_rows"] == 18
    assert len(found["sizes"]) == found["num_speakers"] > 0
    table = pq.read_table(target)
    assert table.column_names == [
        *["recording_id", "channel", "segment_id", "start_s", "end_s", "duration_s", "speaker", "score"]
    ]
    assert table.column("speaker").null_count == found["num_without_speaker"]


def test_refusals_of_cluster(output: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for more, complaint in [
        (["--output", tmp_path / "gone" / "s.parquet"], "does not exist"),
        (["--output", tmp_path / "s.parquet", "--threshold", "2"], "threshold is 2.0"),
        (["--output", tmp_path / "s.parquet", "--num-speakers", "99"], "9 embeddings for num_speakers 99"),
    ]:
        code, _, err = run(capsys, "cluster", output, *more)
        assert code == 2
        assert complaint in err
    assert not list(tmp_path.iterdir())


# ---- nearest


def test_the_nearest_recordings_are_shown(
    output: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, _ = run(capsys, "nearest", output, "--query", "0 a", "s2/7 a.wav", "--top", 2)
    assert code == 0
    lines = out.splitlines()
    assert [lines[0], lines[3]] == [NAMES[0], NAMES[7]]
    assert {line.split(maxsplit=2)[2] for line in lines[1:3]} == {NAMES[1], NAMES[2]}
    assert {line.split(maxsplit=2)[2] for line in lines[4:]} == {NAMES[5], NAMES[6]}
    assert lines[1].split()[0] == "1"

    stranger = table_of(voices(2)[1:], ["stranger"])
    pq.write_table(stranger, tmp_path / "q.parquet")
    for index in ("exact", "faiss"):
        arguments = ["nearest", output, "--query", tmp_path / "q.parquet", "--index", index, "--json"]
        code, out, _ = run(capsys, *arguments, "--top", 2)
        assert code == 0
        found = json.loads(out)
        assert [row["query"] for row in found] == ["stranger"] * 2
        assert {row["recording_id"] for row in found} == {NAMES[3], NAMES[4]}
        assert found[0]["score"] >= found[1]["score"]

    ids = read_embeddings(output, per="segment").column("segment_id").to_pylist()
    code, out, _ = run(capsys, "nearest", output, "--per", "segment", "--query", ids[0], "--top", 1)
    assert code == 0
    assert out.splitlines()[0] == ids[0]
    assert len(out.splitlines()) == 2


def test_refusals_of_nearest(output: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pq.write_table(table_of(voices(1)).drop_columns(["embedding"]), tmp_path / "none.parquet")
    pq.write_table(table_of(voices(1, size=4)), tmp_path / "small.parquet")
    (tmp_path / "text.parquet").write_text("no")
    for query, complaint in [
        ("gone", "no row of the table is called 'gone'"),
        (tmp_path / "none.parquet", "has no column 'embedding'"),
        (tmp_path / "small.parquet", "queries have 4 numbers each and the embeddings 16"),
        (tmp_path / "text.parquet", "cannot be read as Parquet"),
        (tmp_path / "gone.parquet", "gone.parquet' cannot be read"),
    ]:
        code, _, err = run(capsys, "nearest", output, "--query", query)
        assert (code, err.count("\n")) == (2, 1)
        assert complaint in err
