"""A cluster of machines that are raylets of this one, with a head that runs no work; a program to be told.

``RAY_TMPDIR=DIR python three_machines.py`` starts the head and says its address. Then it obeys the lines of
its standard input, and answers each with one:

- ``add NAME CPUS [GPU]`` adds a machine, which has a GPU of that type in name only;
- ``kill NAME`` takes it away without a word;
- ``workers NAME`` names the Ray Data workers that have a process there.

Ray tells every driver on a computer of the cluster that was started last, by a file in its temporary folder:
DIR keeps this one to those who ask for it.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

from ray._private.node import Node
from ray.cluster_utils import Cluster

STORE_BYTES = 150 * 2**20


def children(parent: int) -> Iterator[tuple[int, str]]:
    """The processes that this one started: the number and the command of each."""
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            starter = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
            command = (folder / "cmdline").read_text().rstrip("\0")
        except (FileNotFoundError, ProcessLookupError):  # it ended meanwhile
            continue
        if starter == parent:
            yield int(folder.name), command


def workers(raylet: int) -> Iterator[str]:
    """The titles of the actors whose processes the raylet started."""
    for _, title in children(raylet):
        if "MapBatches(" in title:
            yield title.rpartition("MapBatches(")[2].partition(")")[0]


def serve() -> None:
    head = {"num_cpus": 0, "include_dashboard": False, "object_store_memory": STORE_BYTES}
    cluster = Cluster(initialize_head=True, head_node_args=head)
    nodes: dict[str, Node] = {}
    print(cluster.address, flush=True)
    for line in sys.stdin:
        verb, name, *rest = line.split()
        answer = ""
        if verb == "add":
            gpu = {"num_gpus": 1, "resources": {f"accelerator_type:{rest[1]}": 1}} if rest[1:] else {}
            nodes[name] = cluster.add_node(num_cpus=float(rest[0]), object_store_memory=STORE_BYTES, **gpu)
        elif verb == "kill":
            # Nobody says goodbye: the raylet and its workers are gone at once, as when the power fails.
            cluster.remove_node(nodes.pop(name), allow_graceful=False)
        else:
            (raylet,) = (each.process.pid for each in nodes[name].all_processes["raylet"])
            answer = " ".join(sorted(workers(raylet)))
        print(answer, flush=True)
    cluster.shutdown()


if __name__ == "__main__":
    serve()
