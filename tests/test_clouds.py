"""Streams from clouds: S3 by a server on this machine (moto), and what ends with one line."""

import io
import tarfile

import numpy as np
import pytest
from applied import save_checkpoint
from conftest import ROOT

from modeling_mae.data.find.listing import list_place
from modeling_mae.data.find.streams import list_shards
from modeling_mae.data.stream import shard_cache
from modeling_mae.data.stream.shard_cache import attempt, download, file_system
from modeling_mae.errors import UserError
from modeling_mae.evaluation import extract_features


def test_a_url_is_no_folder():
    with pytest.raises(UserError, match="s3://bucket/images .* add --streaming true"):
        list_place("s3://bucket/images")


def test_unknown_schemes_are_one_line():
    with pytest.raises(UserError, match="nowhere://x.*cannot be opened.*give s3://"):
        attempt(lambda: file_system("nowhere://x"), "nowhere://x")


@pytest.mark.parametrize("url, extra", [("s3://bucket/a.tar", "s3"), ("gs://bucket/a.tar", "gcs")])
def test_a_missing_package_is_named_with_its_extra(monkeypatch, url, extra):
    def missing(url, **options):
        raise ImportError("Install the package to access this")

    monkeypatch.setattr(shard_cache, "url_to_fs", missing)
    with pytest.raises(UserError, match=rf"{url} needs a package.*modeling-mae\[{extra}\]"):
        attempt(lambda: file_system(url), url)


@pytest.fixture
def credentials(monkeypatch):
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "testing")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")


@pytest.fixture
def bucket(credentials, monkeypatch):
    """(the client of a bucket named `bucket`, the requests that its server got)."""
    import boto3
    import s3fs
    from moto.server import ThreadedMotoServer
    from werkzeug.serving import WSGIRequestHandler

    requests = []
    monkeypatch.setattr(WSGIRequestHandler, "log_request", lambda self, *_: requests.append(self.requestline))
    server = ThreadedMotoServer(port=0)
    server.start()
    host, port = server.get_host_and_port()
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{port}")
    s3fs.S3FileSystem.clear_instance_cache()
    client = boto3.client("s3", endpoint_url=f"http://127.0.0.1:{port}")
    client.create_bucket(Bucket="bucket")
    yield client, requests
    server.stop()
    s3fs.S3FileSystem.clear_instance_cache()


@pytest.mark.ecosystem
def test_a_shard_comes_in_few_requests(bucket, tmp_path):
    client, requests = bucket
    content = bytes(range(256)) * (16 << 12)  # 16 MiB
    client.put_object(Bucket="bucket", Key="a.tar", Body=content)
    requests.clear()
    download("s3://bucket/a.tar", len(content), tmp_path / "a.tar")
    assert (tmp_path / "a.tar").read_bytes() == content
    assert len(requests) <= 4  # 17 at 1 MiB each
    assert list_shards("s3://bucket") == ["s3://bucket/a.tar"]
    with pytest.raises(OSError, match="bytes came"):
        download("s3://bucket/a.tar", len(content) + 1, tmp_path / "b.tar")


@pytest.mark.ecosystem
def test_features_of_shards_on_s3_are_those_of_the_files(bucket, tmp_path):
    client, _ = bucket
    save_checkpoint(tmp_path / "model")
    shard = io.BytesIO()
    with tarfile.open(fileobj=shard, mode="w") as tar:
        for path in sorted((ROOT / "data" / "examples").glob("*.png")):
            tar.add(path, path.name)
    client.put_object(Bucket="bucket", Key="shards/0.tar", Body=shard.getvalue())
    options = {"cache_dir": str(tmp_path / "cache"), "num_workers": 0}
    found = extract_features(tmp_path / "model", "s3://bucket/shards", **options)
    expected = extract_features(tmp_path / "model", ROOT / "data" / "examples", num_workers=0)
    np.testing.assert_allclose(found.values, expected.values, atol=1e-6)


@pytest.mark.ecosystem
def test_no_credentials_are_one_line(monkeypatch, tmp_path):
    import s3fs

    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    s3fs.S3FileSystem.clear_instance_cache()
    with pytest.raises(UserError, match="s3://bucket.*without credentials.*AWS_ACCESS_KEY_ID") as raised:
        list_shards("s3://bucket")
    assert "\n" not in str(raised.value)


@pytest.mark.ecosystem
@pytest.mark.parametrize(
    "url, offline", [("s3://bucket", True), ("hf://datasets/owner/name", True), ("hf://datasets/owner/name", False)]
)
def test_a_server_that_is_down_is_one_line(credentials, monkeypatch, url, offline):
    import huggingface_hub
    import s3fs

    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", offline)
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:9")  # refuses connections
    huggingface_hub.HfFileSystem.clear_instance_cache()
    monkeypatch.setattr(shard_cache, "FIRST_WAIT", 0.01)
    s3fs.S3FileSystem.clear_instance_cache()
    with pytest.raises(UserError, match=f"{url} cannot be read.*look at the address and the network") as raised:
        list_shards(url)
    assert "\n" not in str(raised.value)
