"""What a node keeps: copies of model files that are right, few, and never in the way."""

import logging
import math
import os
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from apps.steps import open_steps
from apps.worker import carry_out, device_name, find_node, this_node
from pipeline.durable import sha256_of
from pipeline.node import KEPT, SHARE_OF_REST, UNUSED_S, Node
from pipeline.records import FileRef, Remark
from pipeline.settings.site import InlineSite

LONG_AGO = time.time() - 2 * UNUSED_S


def model_in(directory: Path, content: bytes = b"weights") -> FileRef:
    directory.mkdir(exist_ok=True)
    path = directory / f"v{len(list(directory.iterdir())):04d}.pt"
    path.write_bytes(content)
    return FileRef(path=str(path), sha256=sha256_of(path))


@pytest.fixture
def node(tmp_path):
    return Node(cache=tmp_path / "scratch" / "cache")


def test_a_walk_gets_at_most_a_share_of_what_its_job_has_left():
    assert Node().allowed_s(600.0) == 600.0
    assert Node(ends=time.time() + 1e6).allowed_s(600.0) == 600.0
    assert Node(ends=time.time() + 100.0).allowed_s(600.0) == pytest.approx(100.0 * SHARE_OF_REST, abs=1.0)
    assert Node(ends=time.time() - 5.0).allowed_s(600.0) == 0.0


def test_a_node_without_an_end_lasts_for_ever_and_one_with_an_end_until_then():
    assert Node().left_s == math.inf
    assert Node(ends=time.time() + 100.0).left_s == pytest.approx(100.0, abs=1.0)


def test_a_worker_keeps_to_directories_of_its_own_user_on_the_disk_of_its_node():
    found = find_node({"FARWALK_SCRATCH": "/local", "FARWALK_JOB_ENDS": "1800000000"})
    assert found.scratch is not None
    assert found.scratch.parent == Path("/local")
    assert str(os.getuid()) in found.scratch.name
    assert found.scratch != found.cache
    assert find_node({"FARWALK_JOB_ENDS": "1800000000"}) == Node(ends=1_800_000_000.0)
    assert find_node({"SLURMD_NODENAME": "nid7"}) == Node(name="nid7")
    assert find_node({"SLURMD_NODENAME": "nid7", "FARWALK_SCRATCH": "/local"}).name == "nid7"


def test_without_a_cache_the_file_itself_is_read(tmp_path):
    file = model_in(tmp_path / "models")
    assert Node().model_file(file) == Path(file.path)


def test_a_model_is_copied_once_and_then_read_from_the_copy(tmp_path, node):
    file = model_in(tmp_path / "models")
    copy = node.model_file(file)
    assert copy.parent == node.cache
    assert copy.read_bytes() == b"weights"
    born = copy.stat().st_ino
    Path(file.path).unlink()  # the shared file is not needed any more
    assert node.model_file(file) == copy
    assert copy.stat().st_ino == born
    assert (node.cache.stat().st_mode & 0o777) == 0o700


def test_a_damaged_copy_is_made_anew(tmp_path, node):
    file = model_in(tmp_path / "models")
    node.model_file(file).write_bytes(b"wei")
    assert node.model_file(file).read_bytes() == b"weights"


def test_a_changed_or_missing_model_is_not_copied(tmp_path, node):
    file = model_in(tmp_path / "models")
    Path(file.path).write_bytes(b"other")
    assert node.model_file(file) == Path(file.path)  # who reads it sees that it is another one
    Path(file.path).unlink()
    assert node.model_file(file) == Path(file.path)
    assert list(node.cache.iterdir()) == []


def test_many_workers_of_a_node_share_their_copies(tmp_path, node):
    files = [model_in(tmp_path / "models", os.urandom(1_000_000)) for _ in range(15)]
    code = (
        "import sys; from pathlib import Path; from pipeline.node import Node; from pipeline.records import FileRef\n"
        "node = Node(cache=Path(sys.argv[1]))\n"
        "print('ready', flush=True); sys.stdin.readline()\n"
        "for argument in sys.argv[2:]:\n"
        "    path, sha256 = argument.split()\n"
        "    assert node.model_file(FileRef(path=path, sha256=sha256)) == node.cache / f'{sha256}.pt'"
    )
    arguments = [sys.executable, "-c", code, str(node.cache), *(f"{file.path} {file.sha256}" for file in files)]
    pipes = {name: subprocess.PIPE for name in ("stdin", "stdout", "stderr")}
    workers = [subprocess.Popen(arguments, **pipes) for _ in range(3)]
    for worker in workers:
        assert worker.stdout.readline() == b"ready\n"
    for worker in workers:
        worker.stdin.write(b"go\n")
        worker.stdin.flush()
    for worker in workers:
        _, errors = worker.communicate(timeout=100)
        assert worker.returncode == 0, errors.decode()
    assert {path.name for path in node.cache.iterdir()} == {f"{file.sha256}.pt" for file in files}
    assert all(sha256_of(node.model_file(file)) == file.sha256 for file in files)


def test_old_copies_go_and_files_of_others_stay(tmp_path, node):
    files = [model_in(tmp_path / "models", bytes([k])) for k in range(KEPT + 4)]
    copies = [node.model_file(file) for file in files]
    foreign = [node.cache / "thesis.pt", node.cache / "notes.tmp", node.cache / ".hidden"]
    torn = node.cache / f".{'0' * 64}.pt.123.tmp"
    for path in (*foreign, torn):
        path.touch()
    for age, path in enumerate((*copies[:-1], *foreign, torn)):
        os.utime(path, (LONG_AGO + age, LONG_AGO + age))
    os.utime(copies[0])  # in use
    newest = node.model_file(files[-1])
    left = set(node.cache.iterdir())
    assert {copies[0], newest, *foreign} <= left
    assert len(left) - len(foreign) == KEPT


def test_a_node_whose_disk_takes_nothing_reads_the_shared_file_and_says_so(tmp_path, caplog):
    file = model_in(tmp_path / "models")
    (tmp_path / "scratch").mkdir()
    (tmp_path / "scratch" / "cache").write_text("in the way")
    said: list[Remark] = []
    with caplog.at_level(logging.WARNING):
        assert Node(cache=tmp_path / "scratch" / "cache").model_file(file, said.append) == Path(file.path)
    assert str(tmp_path / "scratch" / "cache") in said[0].text
    assert "site.scratch" in said[0].remedy
    assert said[0].text in caplog.text


def test_a_full_node_disk_leaves_nothing_behind(tmp_path, node):
    file = model_in(tmp_path / "models")
    node.cache.mkdir(parents=True)
    (node.cache / f".{file.sha256}.pt.{os.getpid()}.tmp").symlink_to("/dev/full")
    said: list[Remark] = []
    assert node.model_file(file, said.append) == Path(file.path)
    assert "No space left on device" in said[0].text
    assert list(node.cache.iterdir()) == []


def test_a_cache_that_somebody_else_could_have_made_is_not_used(tmp_path):
    file = model_in(tmp_path / "models")
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "cache").symlink_to(tmp_path / "elsewhere")
    said: list[Remark] = []
    assert Node(cache=tmp_path / "cache").model_file(file, said.append) == Path(file.path)
    assert "somebody else" in said[0].text


@pytest.mark.parametrize(("gpu", "device"), [(True, "cuda"), (False, "cpu")])
def test_models_compute_on_the_gpu_where_torch_finds_one(monkeypatch, gpu, device):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "Instinct MI250X")  # AMD's answer to the same names
    assert this_node().device == device
    assert device_name() == ("cuda (Instinct MI250X)" if gpu else "cpu")
    seen = []
    answer = SimpleNamespace(timing=SimpleNamespace(host="of another worker:1"))
    monkeypatch.setattr("apps.worker.run_task", lambda task, node: (seen.append(node), answer)[1])
    assert carry_out("a task") is answer
    assert seen[0].device == device


def test_tasks_in_the_drivers_process_compute_where_workers_would(monkeypatch, tmp_path):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    seen = []
    monkeypatch.setattr("pipeline.inline.run_task", lambda task, node: seen.append((task, node.device)))
    with open_steps(InlineSite(), tmp_path) as steps:
        steps.submit("a task").result()
    assert seen == [("a task", "cuda")]
