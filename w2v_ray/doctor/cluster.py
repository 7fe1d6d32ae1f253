"""Checks of Ray: its version here, and of a cluster its nodes, what they have and who may come in."""

from __future__ import annotations

import contextlib
import logging
import os
import platform
import socket
import sys
import tempfile
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from w2v_ray.doctor.finding import Finding, note, ok, problem, reason_of

__all__ = ["check_cluster", "check_ray", "local_versions"]

_PACKAGES = ("ray", "torch", "torchaudio", "w2v-ray")
_CONNECT_S = 5.0
_ANSWER_S = 90.0  # a worker that starts on a busy node takes its time
_HTTP_S = 5.0


def check_ray(address: str | None) -> Iterator[Finding]:
    """Which Ray is here, and which cluster a job would join; Ray is not started."""
    import ray

    if address is not None and address.startswith("ray://"):
        tell = problem if address == os.environ.get("RAY_ADDRESS") else note  # jobs would take the former
        text = f"{ray.__version__}; no job runs through Ray Client, as {address} asks for"
        yield tell(
            "ray", text, "unset RAY_ADDRESS, and send jobs with w2v-ray submit --address http://HEAD:8265"
        )
        return
    if address is not None:
        yield ok("ray", f"{ray.__version__}; jobs join the cluster at {address}")
        return
    folder = os.environ.get("RAY_TMPDIR") or os.environ.get("TMPDIR") or "/tmp"
    with contextlib.suppress(OSError), open(os.path.join(folder, "ray", "ray_current_cluster")) as file:
        found = file.read().strip()
        yield note(
            "ray",
            f"{ray.__version__}; a cluster was started here, at {found}",
            "check it with --address auto",
        )
        return
    yield ok("ray", f"{ray.__version__}; no cluster is named, so jobs start Ray on this machine alone")


def check_cluster(address: str) -> Iterator[Finding]:
    """What the nodes of a cluster have and say, by a small task on each."""
    import ray

    started = False
    if not ray.is_initialized():
        if (closed := _closed_port(address)) is not None:
            yield closed
            return
        error, said = _joined(ray, address)
        if error is not None:
            text = f"{address} cannot be joined ({_whole(error)})"
            yield problem("cluster", text, _join_fix(f"{error} {said}"))
            return
        started = True
    try:
        yield from _nodes(ray)
        yield from _doors(ray)
    finally:
        if started:
            ray.shutdown()


def local_versions() -> dict[str, str]:
    """The versions that have to be equal on all nodes, as they are here."""
    found = {"python": platform.python_version()}
    for name in _PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "none"
    return found


def _closed_port(address: str) -> Finding | None:
    """A finding where nothing listens: Ray would go on asking for a minute, and may end the process."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not port.isdigit():
        return None
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=_CONNECT_S).close()
    except OSError as error:
        text = f"nothing answers at {address} ({error.strerror or error})"
        fix = "start the head (ray start --head) or open its port: 10001 of ray://, else 6379"
        return problem("cluster", text, fix)
    return None


def _whole(error: Exception) -> str:
    return " ".join(str(error).split())[:300] or type(error).__name__


def _joined(ray: Any, address: str) -> tuple[Exception | None, str]:
    """Joins a cluster: the error if that fails, and what Ray's native part said on standard error."""
    sys.stderr.flush()
    saved = os.dup(2)
    error = None
    with tempfile.TemporaryFile() as caught:
        os.dup2(caught.fileno(), 2)  # some twenty lines where a token is missing, one a second
        try:
            ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
        except Exception as one:  # Ray's own, of versions, tokens and addresses
            error = one
        finally:
            sys.stderr.flush()
            os.dup2(saved, 2)
            os.close(saved)
        caught.seek(0)
        return error, caught.read().decode(errors="replace")


def _join_fix(said: str) -> str:
    text = said.lower()
    if "mismatch" in text:
        return "install the Python and Ray of the cluster here, to the last digit"
    if "token" in text or "authenti" in text:
        return "set RAY_AUTH_MODE=token here, and RAY_AUTH_TOKEN_PATH to a file with the cluster's token"
    return "start a cluster with ray start --head, or correct --address or RAY_AUTH_MODE"


def _nodes(ray: Any) -> Iterator[Finding]:
    alive = [node for node in ray.nodes() if node["Alive"]]
    dead = len(ray.nodes()) - len(alive)
    total = ray.cluster_resources()
    sizes = [f"{total.get('CPU', 0):g} CPUs", f"{total.get('GPU', 0):g} GPUs"]
    sizes += [f"{total.get(name, 0) / 1e9:,.1f} GB {what}" for name, what in _SIZES]
    count = f"{len(alive)} node{'s' * (len(alive) != 1)}"
    yield ok("cluster", f"{count}: {', '.join(sizes)}" + (f"; {dead} are gone" if dead else ""))
    if not total.get("CPU"):
        yield problem(
            "cluster", "no node offers CPUs", "start workers with ray start --address and --num-cpus"
        )
    here = local_versions()
    same = []
    for node, answer in zip(alive, _asked(ray, alive), strict=True):
        name = f"node {node['NodeManagerAddress']}"
        if isinstance(answer, Exception):
            fix = (
                "look at that node's raylet.log and whether its ports are open, or take it out of the cluster"
            )
            yield problem(name, f"no answer to a task ({reason_of(answer)})", fix)
            continue
        versions, findings = answer
        other = [
            f"{one} {versions[one]} where this driver has {here[one]}"
            for one in here
            if versions[one] != here[one]
        ]
        if other:
            fix = "install the same on every node: one image, or pip install -c constraints.txt"
            yield problem(name, "; ".join(other), fix)
        else:
            same.append(node)
        for check, level, text, fix in findings:
            if level != "ok":
                yield Finding(check=name, level=level, text=f"{check}: {text}", fix=fix)
    if same:
        told = ", ".join(f"{one} {number}" for one, number in here.items())
        yield ok("versions", f"{len(same)} of {len(alive)} nodes have {told}")


_SIZES = (("memory", "memory"), ("object_store_memory", "object store"))


def _asked(ray: Any, nodes: list[dict[str, Any]]) -> list[Any]:
    """What a small task says on each node: its versions, and what is amiss with the machine."""
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    refs = [
        ray.remote(_question())
        .options(
            num_cpus=0,
            max_retries=0,
            scheduling_strategy=NodeAffinitySchedulingStrategy(node_id=node["NodeID"], soft=False),
        )
        .remote()
        for node in nodes
    ]
    ray.wait(refs, num_returns=len(refs), timeout=_ANSWER_S, fetch_local=False)
    answers: list[Any] = []
    for ref in refs:
        try:
            answers.append(ray.get(ref, timeout=1))
        except Exception as error:
            answers.append(error)
    return answers


def _question() -> Callable[[], Any]:
    """The task; it lies within a function, so that it travels whole to nodes that have no w2v_ray."""

    def answer() -> Any:
        import platform
        from importlib.metadata import PackageNotFoundError, version

        found = {"python": platform.python_version()}
        for name in ("ray", "torch", "torchaudio", "w2v-ray"):
            try:
                found[name] = version(name)
            except PackageNotFoundError:
                found[name] = "none"
        findings: list[tuple[str, str, str, str | None]] = []
        try:
            from w2v_ray.doctor import limits
        except ImportError:
            return found, findings
        for check in limits.CHECKS:
            for one in check():
                findings.append((one.check, one.level, one.text, one.fix))
        return found, findings

    return answer


def _doors(ray: Any) -> Iterator[Finding]:
    """Whether anybody may send jobs to the cluster."""
    from w2v_ray.ray_auth import open_cluster

    address = open_cluster()
    fix = "start the cluster with RAY_AUTH_MODE=token, and let nobody but its users reach its ports"
    if address is not None:
        yield problem("access", f"the cluster at {address} takes jobs from whoever reaches it", fix)
    else:
        yield ok("access", "jobs need a token, or Ray was started by this process")
    url = _dashboard(ray)
    if not url:
        yield ok("dashboard", "none")
        return
    host = url.rpartition(":")[0]
    try:
        with urllib.request.urlopen(f"http://{url}/api/version", timeout=_HTTP_S) as reply:  # without a token
            status = reply.status
    except urllib.error.HTTPError as error:
        status = error.code
    except OSError as error:
        yield note("dashboard", f"{url} is not reached from here ({getattr(error, 'reason', error)})")
        return
    if status in (401, 403):
        yield ok("dashboard", f"{url} asks for a token")
    elif host in ("127.0.0.1", "localhost", "[::1]"):
        yield note("dashboard", f"{url} takes jobs without a token from every user of its machine", fix)
    else:
        yield problem("dashboard", f"{url} takes jobs without a token from whoever reaches it", fix)


def _dashboard(ray: Any) -> str | None:
    from ray._private import worker

    node = worker._global_node
    if node is not None:
        return node.webui_url or None
    with contextlib.suppress(Exception):  # a client of ray://
        return str(ray.util.client.ray._get_dashboard_url()) or None
    return None
