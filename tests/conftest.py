"""Shared fixtures: where the real speech lies, a tiny checkpoint, and one Ray for the whole session."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from tests.made_outputs import demo_job
from w2v_ray.progress import Progress

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real speech; tests that need it skip where it is absent."""
    folder = Path(os.environ.get("W2V_RAY_DATA", ROOT.parent / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"no real speech at {folder}; set W2V_RAY_DATA to a folder that has it")
    return folder


@pytest.fixture(scope="session")
def tiny_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of 20 thousand random weights that spells nonsense words, the same in every session."""
    import torch

    from w2v_ray.models.config import Wav2Vec2Config
    from w2v_ray.models.heads import Wav2Vec2ForCTC

    folder = tmp_path_factory.mktemp("tiny_checkpoint")
    config = Wav2Vec2Config(
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=64,
        conv_dim=(16,) * 7,
        conv_bias=True,
        feat_extract_norm="layer",
        do_stable_layer_norm=True,
        num_conv_pos_embeddings=16,
        num_conv_pos_embedding_groups=4,
    )
    vocabulary = ["<pad>", "<s>", "</s>", "<unk>", "|", *"ETAONIHSRDLUMWCFGYPBVK'XJQZ"]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(2)
        model = Wav2Vec2ForCTC(config)
        # So that frames differ in what they spell, with pauses and spaces often enough to make words.
        torch.nn.init.normal_(model.lm_head.weight, std=0.5)
        with torch.no_grad():
            model.lm_head.bias[[0, 4]] = torch.tensor([4.0, 3.0])
    model.save_pretrained(folder)
    files = {
        "vocab.json": {token: index for index, token in enumerate(vocabulary)},
        "tokenizer_config.json": {
            "tokenizer_class": "Wav2Vec2CTCTokenizer",
            "bos_token": "<s>",
            "eos_token": "</s>",
            "unk_token": "<unk>",
            "pad_token": "<pad>",
            "word_delimiter_token": "|",
            "replace_word_delimiter_char": " ",
            "do_lower_case": False,
        },
        "preprocessor_config.json": {
            "feature_extractor_type": "Wav2Vec2FeatureExtractor",
            "feature_size": 1,
            "sampling_rate": 16_000,
            "padding_side": "right",
            "padding_value": 0.0,
            "do_normalize": True,
            "return_attention_mask": True,
        },
    }
    for name, content in files.items():
        (folder / name).write_text(json.dumps(content, indent=2), encoding="utf-8")
    return folder


@pytest.fixture(scope="session")
def tiny_bert_checkpoint(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Wav2Vec2-BERT of random weights with the vocabulary of ``tiny_checkpoint``."""
    import torch

    from w2v_ray import SeamlessM4TFeatureExtractor, Wav2Vec2BertProcessor, Wav2Vec2CTCTokenizer
    from w2v_ray.models.bert_config import Wav2Vec2BertConfig
    from w2v_ray.models.heads import Wav2Vec2BertForCTC

    folder = tmp_path_factory.mktemp("tiny_bert_checkpoint")
    config = Wav2Vec2BertConfig(
        vocab_size=32,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=64,
        output_hidden_size=32,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(2)
        model = Wav2Vec2BertForCTC(config)
        torch.nn.init.normal_(model.lm_head.weight, std=0.5)
        with torch.no_grad():
            model.lm_head.bias[[0, 4]] = torch.tensor([4.0, 3.0])
    model.save_pretrained(folder)
    tokenizer = Wav2Vec2CTCTokenizer.from_pretrained(tiny_checkpoint)
    Wav2Vec2BertProcessor(SeamlessM4TFeatureExtractor(), tokenizer).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def ray_session(s3_server: None) -> Iterator[None]:
    """One Ray on two CPUs for all tests, whose workers know the S3 server; starting one takes 5 to 10 s."""
    import ray

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_metrics_report_interval_ms", "500")  # where Ray exports metrics, they are seen soon
        ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
        yield
        ray.shutdown()


@pytest.fixture(scope="session")
def demo_run(tmp_path_factory: pytest.TempPathFactory, ray_session: None) -> tuple[Path, list[Progress]]:
    """The output of the demo's archive, which no test may change, and what was said of its progress."""
    from w2v_ray import run

    output = tmp_path_factory.mktemp("demo") / "out"
    seen: list[Progress] = []
    job = replace(demo_job(), output=str(output))
    summary = run(job, on_progress=seen.append)
    assert summary.num_items == summary.num_rows == 24
    assert summary.num_rejects == 0
    return output, seen


@pytest.fixture(scope="session")
def s3_server() -> Iterator[None]:
    """A server of the S3 protocol on this machine, and the environment that leads there."""
    from fsspec import get_filesystem_class
    from moto.server import ThreadedMotoServer

    logging.getLogger("werkzeug").setLevel(logging.ERROR)  # a line per request
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    settings = {
        "AWS_ENDPOINT_URL": f"http://{host}:{port}",
        "AWS_ACCESS_KEY_ID": "testing",
        "AWS_SECRET_ACCESS_KEY": "testing",
        "AWS_DEFAULT_REGION": "us-east-1",
    }
    with pytest.MonkeyPatch.context() as patch:
        for name, value in settings.items():
            patch.setenv(name, value)
        get_filesystem_class("s3").clear_instance_cache()  # one made before would ask elsewhere
        yield
        get_filesystem_class("s3").clear_instance_cache()
    server.stop()


@pytest.fixture
def s3(s3_server: None) -> str:
    """The URL of a new, empty bucket."""
    import uuid

    import fsspec

    name = f"bucket-{uuid.uuid4().hex[:12]}"
    fsspec.filesystem("s3").mkdir(name)
    return f"s3://{name}"
