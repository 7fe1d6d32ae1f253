"""Finding checkpoints: folders, and a hub that is a small server on this machine.

huggingface_hub reads its settings when it is imported, so what needs a hub runs in a process of its own.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from tests.made_languages import make_checkpoint
from w2v_ray.audio.features import Wav2Vec2FeatureExtractor
from w2v_ray.errors import CheckpointError
from w2v_ray.hub import checkpoint_file, checkpoint_fingerprint, checkpoint_folder, read_json_file
from w2v_ray.models.auto import AutoModelForCTC
from w2v_ray.processors import Wav2Vec2ProcessorWithLM
from w2v_ray.text import Wav2Vec2CTCTokenizer, build_ctcdecoder

ROOT = Path(__file__).resolve().parents[1]


# Folders


def test_a_file_of_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "config.json").write_text("{}")
    assert checkpoint_file(tmp_path, "config.json") == tmp_path / "config.json"
    assert checkpoint_file(str(tmp_path), "config.json", revision="any") == tmp_path / "config.json"
    assert checkpoint_file(tmp_path, "vocab.json", required=False) is None
    monkeypatch.setenv("HOME", str(tmp_path.parent))
    assert checkpoint_file(f"~/{tmp_path.name}", "config.json") == tmp_path / "config.json"
    monkeypatch.chdir(tmp_path.parent)
    assert checkpoint_file(tmp_path.name, "config.json") == Path(tmp_path.name) / "config.json"


def test_a_missing_file_of_a_folder(tmp_path: Path) -> None:
    with pytest.raises(
        CheckpointError, match=r"has no config\.json \(it holds nothing\); name a folder that"
    ):
        checkpoint_file(tmp_path, "config.json")
    (tmp_path / "b").touch()
    (tmp_path / "a").mkdir()
    with pytest.raises(CheckpointError, match=r"has no config\.json \(it holds a, b\)"):
        checkpoint_file(tmp_path, "config.json")
    (tmp_path / "config.json").mkdir()
    with pytest.raises(CheckpointError, match=r"has no config\.json"):
        checkpoint_file(tmp_path, "config.json")


def test_a_file_given_as_model(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    path.touch()
    with pytest.raises(
        CheckpointError, match=r"model\.safetensors' is a file; name the folder that holds its"
    ):
        checkpoint_file(path, "config.json", required=False)


@pytest.mark.parametrize(
    "name",
    ["/no/such/folder", "./no/such", "../x", "~/no/such/model", "a/b/c", "a--b", "x/y.git", "-x", "a b", "é"],
)
def test_a_folder_that_does_not_exist(name: str) -> None:
    with pytest.raises(CheckpointError) as caught:
        checkpoint_file(name, "config.json", required=False)
    assert str(caught.value) == (
        f"model folder {name!r} does not exist; name a folder with a config.json or a hub id"
    )


def test_fingerprint_is_of_what_decides_the_results(tiny_checkpoint: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    copy.mkdir()
    for path in tiny_checkpoint.iterdir():
        (copy / path.name).write_bytes(path.read_bytes())
    same = checkpoint_fingerprint(tiny_checkpoint)
    assert same.startswith("sha256:")
    (copy / "README.md").write_text("changes nothing")
    assert checkpoint_fingerprint(copy) == same == checkpoint_fingerprint(str(copy))
    seen = {same}
    for name in ("config.json", "vocab.json", "tokenizer_config.json", "preprocessor_config.json"):
        (copy / name).write_text((copy / name).read_text() + "\n")
        seen.add(checkpoint_fingerprint(copy))
    (copy / "added_tokens.json").write_text("{}")
    seen.add(checkpoint_fingerprint(copy))
    weights = bytearray((copy / "model.safetensors").read_bytes())
    weights[-1] ^= 1
    (copy / "model.safetensors").write_bytes(weights)
    seen.add(checkpoint_fingerprint(copy))
    assert len(seen) == 7


def test_fingerprint_of_shards(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    index = {"weight_map": {"a": "1.safetensors", "b": "2.safetensors"}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(CheckpointError, match=r"has no 1\.safetensors"):
        checkpoint_fingerprint(tmp_path)
    for name in ("1.safetensors", "2.safetensors"):
        (tmp_path / name).write_bytes(b"weights")
    first = checkpoint_fingerprint(tmp_path)
    (tmp_path / "2.safetensors").write_bytes(b"others")
    assert checkpoint_fingerprint(tmp_path) != first


def test_fingerprint_reads_no_shard_elsewhere(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    (tmp_path / "outside.safetensors").write_bytes(b"weights")
    for shard in ("../outside.safetensors", str(tmp_path / "outside.safetensors")):
        (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": shard}}))
        with pytest.raises(
            CheckpointError, match=r"index\.json names the shard .*, expected a file beside it"
        ):
            checkpoint_fingerprint(folder)
    (folder / "model.safetensors.index.json").write_text('{"weight_map": ["1.safetensors"]}')
    with pytest.raises(CheckpointError, match=r"index\.json has no weight_map"):
        checkpoint_fingerprint(folder)


def test_fingerprint_needs_config_and_weights(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"has no config\.json"):
        checkpoint_fingerprint(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(
        CheckpointError, match=r"has neither model\.safetensors nor .* nor pytorch_model\.bin; name"
    ):
        checkpoint_fingerprint(tmp_path)


def test_json_that_is_none(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    path.write_text('{"a": [1]}')
    assert read_json_file(path) == {"a": [1]}
    for content, message in (
        (b"{", "is not readable as JSON"),
        (b"[]", "holds a JSON list, expected an object"),
    ):
        path.write_bytes(content)
        with pytest.raises(CheckpointError, match=f"^{path} {message}"):
            read_json_file(path)


# The hub


@dataclass
class StandInHub:
    """Answers what huggingface_hub asks for.

    Of a file: HEAD and GET of /REPOSITORY/resolve/REVISION/FILE. Of a folder: GET of
    /api/models/REPOSITORY/revision/REVISION, which names the commit, and of .../tree/COMMIT, its files.
    """

    repositories: dict[str, dict[str, dict[str, bytes]]]
    """Repository, then commit, then file name."""
    branches: dict[str, dict[str, str]]
    """Repository, then branch or tag, then commit."""
    missing_status: int = 404
    """Of an unknown repository; the real hub says 401 to those who have no account."""
    broken: str = ""
    """How to misbehave: a status, or "silent" to hang up without an answer."""
    asked: Counter[str] = field(default_factory=Counter)
    stored: dict[str, bytes] = field(default_factory=dict)
    server: ThreadingHTTPServer | None = None
    url: str = ""

    def start(self) -> None:
        hub = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_HEAD(self) -> None:
                hub.answer(self, with_body=False)

            def do_GET(self) -> None:
                hub.answer(self, with_body=True)

            def log_message(self, *_: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"
        threading.Thread(
            target=self.server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True
        ).start()

    def stop(self) -> None:
        if self.server is not None:
            self.server.shutdown()
            self.server.server_close()
            self.server = None

    def answer(self, request: BaseHTTPRequestHandler, *, with_body: bool) -> None:
        if request.path.startswith("/store/"):
            content = self.stored[request.path.removeprefix("/store/")]
            return self.send(request, 200, {}, content, with_body=with_body)
        path = request.path.lstrip("/").partition("?")[0].removeprefix("api/models/")
        kind = next(kind for kind in ("resolve", "revision", "tree") if f"/{kind}/" in path)
        repository, _, rest = path.partition(f"/{kind}/")
        revision, _, name = rest.partition("/")
        self.asked[f"{request.command} {name or kind}"] += 1
        if self.broken == "silent":
            request.close_connection = True
            return None
        if self.broken:
            return self.send(request, int(self.broken), {}, b"")
        if repository not in self.repositories:
            return self.send(request, self.missing_status, {"X-Error-Code": "RepoNotFound"}, b"")
        commit = self.branches[repository].get(revision, revision)
        if commit not in self.repositories[repository]:
            return self.send(request, 404, {"X-Error-Code": "RevisionNotFound"}, b"")
        if kind == "revision":
            return self.send_json(request, {"id": repository, "sha": commit})
        if kind == "tree":
            files = self.repositories[repository][commit].items()
            digests = {path: hashlib.sha1(content).hexdigest() for path, content in files}
            entries = [
                {"type": "file", "path": path, "size": len(content), "oid": digests[path]}
                for path, content in files
            ]
            return self.send_json(request, entries)
        headers = {"X-Repo-Commit": commit}
        if name not in self.repositories[repository][commit]:
            return self.send(request, 404, headers | {"X-Error-Code": "EntryNotFound"}, b"")
        content = self.repositories[repository][commit][name]
        digest = hashlib.sha1(content).hexdigest()
        if name.endswith(".safetensors"):  # large files lie elsewhere
            self.stored[digest] = content
            elsewhere = self.url.replace("127.0.0.1", "localhost")  # another host to the client
            headers |= {"X-Linked-ETag": f'"{digest}"', "X-Linked-Size": str(len(content))}
            return self.send(request, 302, headers | {"Location": f"{elsewhere}/store/{digest}"}, b"")
        headers |= {"ETag": f'"{digest}"'}
        return self.send(request, 200, headers, content, with_body=with_body)

    def send_json(self, request: BaseHTTPRequestHandler, value: Any) -> None:
        self.send(request, 200, {"Content-Type": "application/json"}, json.dumps(value).encode())

    def send(
        self,
        request: BaseHTTPRequestHandler,
        status: int,
        headers: dict[str, str],
        content: bytes,
        *,
        with_body: bool = True,
    ) -> None:
        request.send_response(status)
        for key, value in (headers | {"Content-Length": str(len(content))}).items():
            request.send_header(key, value)
        request.end_headers()
        if with_body:
            request.wfile.write(content)


OLD, NEW = "a" * 40, "b" * 40


@pytest.fixture
def hub(tiny_checkpoint: Path) -> Iterator[StandInHub]:
    files = {path.name: path.read_bytes() for path in tiny_checkpoint.iterdir()}
    hub = StandInHub(
        repositories={
            "someone/tiny": {OLD: files | {"which.txt": b"old"}, NEW: files | {"which.txt": b"new"}},
            "unscoped": {NEW: {"config.json": b"{}"}},
        },
        branches={"someone/tiny": {"main": NEW, "v1": OLD}, "unscoped": {"main": NEW}},
    )
    hub.start()
    yield hub
    hub.stop()


@dataclass
class Client:
    """Runs a few lines in a new process that knows the stand-in hub and has a cache of its own."""

    home: Path
    url: str

    def __call__(self, code: str, **environment: str) -> Any:
        prelude = (
            "import json\n"
            "from w2v_ray.errors import CheckpointError\n"
            "from w2v_ray.hub import checkpoint_file, checkpoint_fingerprint, checkpoint_folder\n"
            "def text(*args, **kwargs):\n"
            "    try:\n"
            "        path = checkpoint_file(*args, **kwargs)\n"
            "    except CheckpointError as error:\n"
            "        return f'error: {error}'\n"
            "    return None if path is None else path.read_text()\n"
            "def texts(*args, **kwargs):\n"
            "    try:\n"
            "        folder = checkpoint_folder(*args, **kwargs)\n"
            "    except CheckpointError as error:\n"
            "        return f'error: {error}'\n"
            "    files = (path for path in folder.rglob('*') if path.is_file())\n"
            "    return {str(path.relative_to(folder)): path.read_text() for path in files}\n"
        )
        kept = {k: v for k, v in os.environ.items() if not k.startswith("HF_") and "proxy" not in k.lower()}
        done = subprocess.run(
            [sys.executable, "-W", "error", "-c", f"{prelude}print(json.dumps({code}))"],
            cwd=ROOT,
            env=kept
            | {"HF_ENDPOINT": self.url, "HF_HOME": str(self.home), "PYTHONPATH": str(ROOT)}
            | {"HF_HUB_DISABLE_XET": "1"}
            | environment,
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert done.returncode == 0, done.stderr
        assert "Retrying" not in done.stderr, "huggingface_hub goes on asking for 23 s before it gives up"
        return json.loads(done.stdout)


@pytest.fixture
def client(hub: StandInHub, tmp_path: Path) -> Client:
    return Client(tmp_path / "hf", hub.url)


def says_unreachable(answer: str, model: str) -> bool:
    cannot = (
        f"error: model {model} is neither a local folder nor in the cache, and the hub cannot be reached ("
    )
    return answer.startswith(cannot) and answer.endswith("); name an existing folder, or go online once")


def test_a_file_is_downloaded_once_and_then_cached(hub: StandInHub, client: Client) -> None:
    asked = "[text('someone/tiny', 'which.txt'), text('unscoped', 'config.json')]"
    assert client(asked) == ["new", "{}"]
    assert client(asked) == ["new", "{}"]
    assert hub.asked["GET which.txt"] == hub.asked["GET config.json"] == 1
    hub.stop()
    assert client(asked) == ["new", "{}"]


def test_a_revision_is_a_branch_tag_or_commit(hub: StandInHub, client: Client) -> None:
    revisions = [None, "main", "v1", OLD, NEW, "no"]
    asked = f"[text('someone/tiny', 'which.txt', revision=r) for r in {revisions}]"
    expected = ["new", "new", "old", "old", "new"]
    missing = "error: the hub repository 'someone/tiny' has no revision 'no'; name one it has"
    assert client(asked) == [*expected, missing]
    hub.stop()
    *found, unreachable = client(asked)
    assert found == expected
    assert says_unreachable(unreachable, "'someone/tiny' at revision 'no'")


def test_a_branch_that_moved_is_followed(hub: StandInHub, client: Client) -> None:
    assert client("text('someone/tiny', 'which.txt')") == "new"
    hub.branches["someone/tiny"]["main"] = OLD
    assert client("text('someone/tiny', 'which.txt')") == "old"


def test_a_missing_file(client: Client) -> None:
    asked = (
        "[text('someone/tiny', 'no.json'), text('someone/tiny', 'no.json', required=False),"
        " text('someone/tiny', 'no.json', revision='v1')]"
    )
    assert client(asked) == [
        "error: the hub repository 'someone/tiny' has no no.json; name a repository that has one",
        None,
        "error: the hub repository 'someone/tiny' at revision 'v1' has no no.json; "
        "name a repository that has one",
    ]


@pytest.mark.parametrize("status", [401, 404])
def test_a_missing_repository(hub: StandInHub, client: Client, status: int) -> None:
    hub.missing_status = status
    expected = (
        "error: model 'no/such' is neither a local folder nor a hub repository that this account can read; "
        "check the name"
    )
    asked = "[text('no/such', 'config.json'), text('no/such', 'vocab.json', required=False)]"
    assert client(asked) == [expected, expected]


def test_a_hub_that_cannot_be_reached_is_said_soon(hub: StandInHub, client: Client) -> None:
    hub.stop()
    asked = "[text('someone/tiny', 'config.json'), text('someone/tiny', 'vocab.json', required=False)]"
    answers = client(asked)
    assert all(says_unreachable(answer, "'someone/tiny'") for answer in answers)
    assert "Connection refused" in answers[0]


def test_offline_mode(client: Client) -> None:
    assert client("text('someone/tiny', 'which.txt')") == "new"
    asked = "[text('someone/tiny', 'which.txt'), text('unscoped', 'config.json')]"
    found, unreachable = client(asked, HF_HUB_OFFLINE="1")
    assert found == "new"
    assert says_unreachable(unreachable, "'unscoped'")
    assert "offline mode is enabled" in unreachable


def test_a_file_known_to_be_missing_stays_so_without_the_hub(hub: StandInHub, client: Client) -> None:
    """Or a cached checkpoint that has pytorch_model.bin alone would not load, as safetensors is asked for."""
    asked = (
        "[text('someone/tiny', 'which.txt'), text('someone/tiny', 'no.json', required=False),"
        " checkpoint_fingerprint('someone/tiny')]"
    )
    first = client(asked)
    assert first[:2] == ["new", None]
    hub.stop()
    assert client(asked) == first
    assert client(asked, HF_HUB_OFFLINE="1") == first
    unknown = "text('someone/tiny', 'never_asked_for.json', required=False)"
    assert says_unreachable(client(unknown), "'someone/tiny'")


def test_a_hub_that_hangs_up(hub: StandInHub, client: Client) -> None:
    hub.broken = "silent"
    message = client("text('someone/tiny', 'config.json')")
    assert message.startswith("error: config.json of model 'someone/tiny' could not be fetched (")
    assert message.endswith("); try again")
    hub.broken = ""
    assert client("text('someone/tiny', 'config.json')").startswith("{")


def test_a_hub_that_refuses(hub: StandInHub, client: Client) -> None:
    hub.broken = "403"
    message = client("text('someone/tiny', 'config.json')")
    assert says_unreachable(message, "'someone/tiny'")
    assert "403 Forbidden" in message
    assert "\n" not in message


def test_a_checkpoint_of_the_hub_loads_like_its_folder(
    hub: StandInHub, client: Client, tiny_checkpoint: Path
) -> None:
    model = AutoModelForCTC.from_pretrained(tiny_checkpoint)
    loaded = "__import__('w2v_ray').AutoModelForCTC.from_pretrained('someone/tiny')"
    fingerprint = "checkpoint_fingerprint('someone/tiny')"
    expected = checkpoint_fingerprint(tiny_checkpoint)
    assert client(f"[{loaded}.lm_head.weight.sum().item(), {fingerprint}]") == [
        model.lm_head.weight.sum().item(),
        expected,
    ]
    hub.stop()
    assert client(fingerprint) == expected


def test_a_folder_is_downloaded_once_and_then_cached(hub: StandInHub, client: Client) -> None:
    hub.repositories["unscoped"][NEW] |= {"lm/a.txt": b"a", "lm/b.txt": b"b", "other/c.txt": b"c"}
    asked = "texts('unscoped', ['config.json', 'lm/*', 'no/*'])"
    expected = {"config.json": "{}", "lm/a.txt": "a", "lm/b.txt": "b"}
    assert client(asked) == expected
    assert client(asked) == expected
    assert hub.asked["GET lm/a.txt"] == hub.asked["GET config.json"] == 1
    assert client(f"texts('unscoped', ['lm/*'], revision='{NEW}')") == expected
    hub.stop()
    assert client(asked) == expected
    assert client(asked, HF_HUB_OFFLINE="1") == expected
    assert says_unreachable(client("texts('unscoped', ['other/*'])"), "'unscoped'")


def test_a_folder_that_is_not_there(hub: StandInHub, client: Client, tmp_path: Path) -> None:
    assert checkpoint_folder(tmp_path, ["lm/*"], revision="any") == tmp_path
    asked = "[texts('no/such', ['a']), texts('unscoped', ['a'], revision='no'), texts('/no/such', ['a'])]"
    assert client(asked) == [
        "error: model 'no/such' is neither a local folder nor a hub repository that this account can read; "
        "check the name",
        "error: the hub repository 'unscoped' has no revision 'no'; name one it has",
        "error: model folder '/no/such' does not exist; name a folder with a config.json or a hub id",
    ]
    hub.stop()
    assert says_unreachable(client("texts('someone/tiny', ['a'])"), "'someone/tiny'")


ARPA = """\\data\\
ngram 1=4
ngram 2=1

\\1-grams:
-2\t<unk>\t0
-99\t<s>\t0
-1\t</s>\t0
-0.5\tAB\t-0.1

\\2-grams:
-0.1\t<s> AB

\\end\\
"""


def test_a_checkpoint_of_the_hub_brings_its_language_model(
    hub: StandInHub, client: Client, tmp_path: Path
) -> None:
    tokens = ["<pad>", "<s>", "</s>", "<unk>", "|", "A", "B"]
    (tmp_path / "vocab.json").write_text(json.dumps({token: index for index, token in enumerate(tokens)}))
    (tmp_path / "words.arpa").write_text(ARPA)
    saved = Wav2Vec2ProcessorWithLM(
        Wav2Vec2FeatureExtractor(),
        Wav2Vec2CTCTokenizer(tmp_path / "vocab.json"),
        build_ctcdecoder(tokens, str(tmp_path / "words.arpa"), alpha=0.25),
    ).save_pretrained(tmp_path / "saved")
    files = {str(Path(path).relative_to(tmp_path / "saved")): Path(path).read_bytes() for path in saved}
    hub.repositories["someone/lm"], hub.branches["someone/lm"] = {NEW: files}, {"main": NEW}
    asked = (
        "[[p.language_model.alpha, p.decode(10 * __import__('numpy').eye(7)[[5, 0, 6]]).text]"
        " for p in [__import__('w2v_ray').AutoProcessor.from_pretrained('someone/lm')]]"
    )
    assert client(asked) == [[0.25, "AB"]]
    hub.stop()
    assert client(asked) == [[0.25, "AB"]]


def test_languages_of_a_hub_id_are_those_of_its_vocabulary(
    hub: StandInHub, client: Client, tmp_path: Path
) -> None:
    folder = make_checkpoint(tmp_path / "mms", pickled=("deu",))
    (folder / "adapter.nld.safetensors").unlink()
    files = {path.name: path.read_bytes() for path in folder.iterdir()}
    hub.repositories["someone/mms"], hub.branches["someone/mms"] = {NEW: files}, {"main": NEW}
    languages = "__import__('w2v_ray.languages', fromlist=['_'])"
    tokenizer = "__import__('w2v_ray').Wav2Vec2CTCTokenizer.from_pretrained('someone/mms')"
    assert client(f"{languages}.known_languages('someone/mms', {tokenizer})") == ["deu", "eng", "fra", "nld"]
    assert not any("adapter" in request for request in hub.asked)
    find = "__import__('w2v_ray.hub', fromlist=['_']).adapter_file('someone/mms', name)"
    names = ["deu", "fra", "nld", "../fra"]
    assert client(f"[(path := {find}) and path.name for name in {names}]") == [
        *("adapter.deu.bin", "adapter.fra.safetensors", None, None)
    ]
