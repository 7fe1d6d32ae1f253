"""The commands that work on the embeddings of an output: ``verify``, ``cluster`` and ``nearest``."""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from w2v_ray.errors import InputError

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = ["COMMANDS", "add_commands", "cluster", "nearest", "verify"]

_P_TARGETS = (0.01, 0.05)
_SPEAKERS_SHOWN = 20

_VERIFY_EPILOG = """\
trials, one in a line; names with spaces are quoted, or the fields separated by tabs:
  1 id10270/a/00001.wav id10270/b/00002.wav     (1: one speaker, 0: two)
  84-121123-0000 84-121550-0001 target          (or nontarget)

Names are recording ids, or their ends, with or without extension. --scores
writes NAME, NAME, score, target or nontarget, separated by tabs.

examples:
  w2v-ray verify trials.txt --embeddings out
  w2v-ray verify trials.txt --embeddings out --p-target 0.001 --scores scores.tsv
"""
_CLUSTER_EPILOG = """\
The table has the columns recording_id, channel, [segment_id, start_s, end_s,]
duration_s, speaker and score: the cosine of the row's embedding and the mean
of its speaker's. speaker-0001 has the most rows; null stands for none.

examples:
  w2v-ray cluster out --output speakers.parquet
  w2v-ray cluster out --output speakers.parquet --threshold 0.62
  w2v-ray cluster out --output speakers.parquet --num-speakers 40
  w2v-ray cluster out --output speakers.parquet --method hdbscan --min-size 10
"""
_NEAREST_EPILOG = """\
examples:
  w2v-ray nearest out --query 84-121123-0000 --top 5
  w2v-ray nearest out --query other.parquet --index faiss --json
"""


def add_commands(commands: Any, common: argparse.ArgumentParser) -> None:
    """Adds the commands to an argument parser's others; ``common`` has the options of every command."""
    _add_verify(commands, common)
    _add_cluster(commands, common)
    _add_nearest(commands, common)


def _add_verify(commands: Any, common: argparse.ArgumentParser) -> None:
    parser = commands.add_parser(
        "verify",
        parents=[common],
        help="score pairs of recordings by their embeddings: EER and minDCF",
        description="Score a list of trials by the cosine of embeddings, and say how well that tells\n"
        "one speaker from two: the equal error rate and the least detection cost.",
        epilog=_VERIFY_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("trials", metavar="TRIALS", help="text file, plain or gzip, path or URL; see below")
    parser.add_argument("--embeddings", required=True, metavar="OUT", help="output folder of a job, or URL")
    _add_per(parser, "what the trials name")
    parser.add_argument(
        "--p-target",
        type=float,
        nargs="+",
        default=list(_P_TARGETS),
        metavar="P",
        help="shares of trials of one speaker to give minDCF for (default: 0.01 0.05)",
    )
    parser.add_argument("--scores", metavar="FILE", help="write the score of every trial there")
    parser.add_argument(
        "--skip-missing", action="store_true", help="leave out trials without an embedding; else an error"
    )


def _add_cluster(commands: Any, common: argparse.ArgumentParser) -> None:
    parser = commands.add_parser(
        "cluster",
        parents=[common],
        help="find speakers among the embeddings, and write who is who as a table",
        description="Group the embeddings of an output by speaker, and write the groups as a Parquet\n"
        "file. Needs the extra speakers: pip install 'w2v-ray[speakers]'.",
        epilog=_CLUSTER_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("source", metavar="OUT", help="output folder of a job, or URL")
    parser.add_argument("--output", required=True, metavar="TABLE.parquet", help="file or URL to write")
    _add_per(parser, "what gets a speaker")
    parser.add_argument(
        "--method",
        default="agglomerative",
        choices=["agglomerative", "two-stage", "hdbscan"],
        help="agglomerative merges what is alike until --threshold or --num-speakers; two-stage does so in "
        "parts, for more than 22,360 rows; hdbscan finds dense groups and leaves the rest without a speaker "
        "(default: %(default)s)",
    )
    parser.add_argument(
        "--threshold",
        type=float,
        metavar="C",
        help="least mean cosine of groups that are merged, such as the threshold that verify prints "
        "(default: 0.5)",
    )
    parser.add_argument("--num-speakers", type=int, metavar="N", help="how many groups to find instead")
    parser.add_argument(
        "--min-size",
        type=int,
        metavar="N",
        help="groups with fewer members are no speakers (default: 1; of hdbscan 5)",
    )


def _add_nearest(commands: Any, common: argparse.ArgumentParser) -> None:
    parser = commands.add_parser(
        "nearest",
        parents=[common],
        help="find the recordings whose embeddings are nearest to some",
        description="Find the recordings, or segments, whose embeddings have the highest cosine with\n"
        "those of some, which are left out themselves.",
        epilog=_NEAREST_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("source", metavar="OUT", help="output folder of a job, or URL")
    parser.add_argument(
        "--query",
        required=True,
        nargs="+",
        metavar="ID|FILE",
        help="recording or segment of OUT, by its id or the end of it; or a .parquet file with the columns "
        "recording_id and embedding",
    )
    parser.add_argument(
        "--top", type=int, default=10, metavar="N", help="how many to find for each (default: %(default)s)"
    )
    _add_per(parser, "what is found")
    parser.add_argument(
        "--index",
        default="exact",
        choices=["exact", "faiss"],
        help="exact compares with every row; faiss builds a graph first, which pays for tens of thousands of "
        "queries and may miss some (needs the extra search) (default: %(default)s)",
    )


def _add_per(parser: argparse.ArgumentParser, what: str) -> None:
    parser.add_argument(
        "--per",
        default="recording",
        choices=["recording", "segment"],
        help=f"{what}; the embedding of a recording is the mean of its segments' (default: %(default)s)",
    )


def verify(args: argparse.Namespace) -> int:
    """Scores trials and says how well the scores tell them apart."""
    from w2v_ray.embeddings import read_embeddings, read_trials, score_lines, verify
    from w2v_ray.result_files import check_result, write_lines

    if args.scores:
        check_result(args.scores)
    trials = read_trials(args.trials)
    table = read_embeddings(args.embeddings, per=args.per)
    found = verify(trials, table, p_targets=args.p_target, skip_missing=args.skip_missing)
    if args.scores:
        write_lines(score_lines(trials, found.scores), args.scores)
    if args.json:
        print(found.to_json())
        return 0
    number = found.num_targets + found.num_nontargets
    print(f"trials  {number:,}: {found.num_targets:,} of one speaker, {found.num_nontargets:,} of two")
    if found.num_missing:
        print(f"missing {_count(found.num_missing, 'more trial')}, left out for want of an embedding")
    print(f"EER     {found.eer:.2%} at threshold {found.eer_threshold:.4f}")
    for p_target, cost in found.min_dcf.items():
        print(f"minDCF  {cost:.4f} for p_target {p_target:g}{_at(found.min_dcf_thresholds[p_target])}")
    if args.scores:
        print(f"scores written to {args.scores}")
    return 0


def cluster(args: argparse.Namespace) -> int:
    """Groups embeddings by speaker and writes the groups."""
    import pyarrow.compute as pc

    from w2v_ray.embeddings import check_clustering, cluster_speakers, read_embeddings
    from w2v_ray.result_files import check_result, write_table

    names = ("threshold", "num_speakers", "min_size")
    settings = {name: getattr(args, name) for name in names}
    check_clustering(args.method, **settings)
    check_result(args.output)
    embeddings = read_embeddings(args.source, per=args.per)
    table = cluster_speakers(embeddings, method=args.method, **settings)
    write_table(table, args.output)
    speakers = table.column("speaker")
    counted = pc.value_counts(speakers.drop_null()).to_pylist()
    sizes = {entry["values"]: entry["counts"] for entry in sorted(counted, key=lambda e: e["values"])}
    none = speakers.null_count
    if args.json:
        found = {
            "output": args.output,
            "num_rows": table.num_rows,
            "num_speakers": len(sizes),
            "num_without_speaker": none,
            "sizes": sizes,
        }
        print(json.dumps(found))
    else:
        print("\n".join(_speaker_lines(table, sizes, none, args.per)))
        print(f"written to {args.output}")
    return 0


def nearest(args: argparse.Namespace) -> int:
    """Finds what is nearest to each query and shows it."""
    from w2v_ray.embeddings import nearest, read_embeddings

    table = read_embeddings(args.source, per=args.per)
    found = nearest(table, _queries(args.query, table), top=args.top, index=args.index)
    if args.json:
        print(json.dumps(found.to_pylist()))
        return 0
    last = None
    for row in found.to_pylist():
        if row["query"] != last:
            last = row["query"]
            print(_printable(last))
        name = row.get("segment_id") or _called(row)
        print(f"  {row['rank']:4}  {row['score']:7.4f}  {_printable(name)}")
    if not found.num_rows:
        print("nothing but the queries is there")
    return 0


COMMANDS = {"cluster": cluster, "nearest": nearest, "verify": verify}


def _queries(wanted: list[str], table: pa.Table) -> pa.Table:
    """The rows that are named, and those of the files that are."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    from w2v_ray import stores
    from w2v_ray.embeddings import match_rows

    parts = []
    for name in wanted:
        if name.endswith(".parquet") and (stores.exists(name) or os.sep in name):
            try:
                with stores.open_range(name, None, None) as file:
                    part = pq.read_table(file)
            except Exception as error:  # each store has its own errors, and Arrow its own
                raise InputError(
                    f"{name!r} cannot be read as Parquet ({stores.explain(error)}); name another file"
                ) from error
            for column in ("recording_id", "embedding"):
                if column not in part.column_names:
                    raise InputError(f"{name!r} has no column {column!r}; write what read_embeddings returns")
        else:
            part = table.take(match_rows([name], table))
        kept = [column for column in ("recording_id", "channel", "segment_id") if column in part.column_names]
        if "segment_id" not in table.column_names and "segment_id" in kept:
            kept.remove("segment_id")
        parts.append(part.select([*kept, "embedding"]))
    return pa.concat_tables(parts, promote_options="permissive")


def _speaker_lines(table: pa.Table, sizes: dict[str, int], none: int, per: str) -> Iterator[str]:
    yield f"{_count(len(sizes), 'speaker')} in {_count(table.num_rows, per)}"
    for name, size in list(sizes.items())[:_SPEAKERS_SHOWN]:
        yield f"  {name}  {size:,}"
    if len(sizes) > _SPEAKERS_SHOWN:
        rest = sum(list(sizes.values())[_SPEAKERS_SHOWN:])
        yield f"  and {len(sizes) - _SPEAKERS_SHOWN:,} more with {_count(rest, per)}"
    if none:
        yield f"  {_count(none, per)} without a speaker"


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def _at(threshold: float) -> str:
    return f" at threshold {threshold:.4f}" if threshold < float("inf") else ", rejecting all"


def _called(row: dict[str, Any]) -> str:
    return str(row["recording_id"]) + ("" if row["channel"] is None else f"#c{row['channel']}")


def _printable(text: str) -> str:
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)
