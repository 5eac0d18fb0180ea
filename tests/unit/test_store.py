"""The campaign directory: made whole or not at all, one driver, files checked, nothing removed that is not ours."""

import hashlib
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from test_events import EXAMPLES
from test_shards import labels

from pipeline.errors import StoreError
from pipeline.lock import DriverLock, holder_of
from pipeline.records import FileRef
from pipeline.shards import read_labels, write_labels
from pipeline.store import Store


@pytest.fixture
def store(tmp_path):
    return Store.create(tmp_path / "c", settings_yaml="name: c\n", first=EXAMPLES[0])


def test_a_new_directory_holds_settings_and_the_first_event(store):
    assert store.events() == (EXAMPLES[0],)
    assert (store.root / "campaign.yaml").read_text() == "name: c\n"
    assert Store.open(store.root).state().round == 0
    assert not any(path.name.startswith(".") for path in store.root.parent.iterdir())


def test_a_directory_with_something_else_is_left_alone(tmp_path):
    (tmp_path / "c").mkdir()
    (tmp_path / "c" / "thesis.tex").write_text("mine")
    with pytest.raises(StoreError, match="not a campaign"):
        Store.create(tmp_path / "c", settings_yaml="", first=EXAMPLES[0])
    with pytest.raises(StoreError, match="not a campaign"):
        Store.open(tmp_path / "c")
    assert [path.name for path in tmp_path.rglob("*")] == ["c", "thesis.tex"]


def test_an_empty_directory_is_used(tmp_path):
    (tmp_path / "c").mkdir()
    Store.create(tmp_path / "c", settings_yaml="", first=EXAMPLES[0])
    assert Store.open(tmp_path / "c").events()


def test_files_are_named_relative_in_events_and_absolute_in_tasks(store):
    file = store.put_labels("labels-x", labels())
    assert file.path == "shards/labels-x.h5"
    assert Path(store.absolute(file).path) == store.root / "shards" / "labels-x.h5"


def test_a_model_is_published_by_rename_and_only_if_it_is_the_one_the_worker_wrote(store):
    scratch = store.scratch_of("train-v0001")
    scratch.mkdir()
    (scratch / "model.pt").write_bytes(b"weights")
    digest = hashlib.sha256(b"weights").hexdigest()
    with pytest.raises(StoreError, match="content changed"):
        store.publish_model(FileRef(path=str(scratch / "model.pt"), sha256="0" * 64), 1)
    file = store.publish_model(FileRef(path=str(scratch / "model.pt"), sha256=digest), 1)
    assert file == FileRef(path="models/v0001.pt", sha256=digest)
    assert (store.root / "models" / "v0001.pt").read_bytes() == b"weights"
    assert store.publish_model(FileRef(path=str(scratch / "model.pt"), sha256=digest), 1) == file, "it is there already"
    with pytest.raises(StoreError, match="missing"):
        store.publish_model(FileRef(path=str(scratch / "model.pt"), sha256=digest), 2)


def test_shards_of_a_worker_are_published_by_rename_again_and_again(store):
    """A driver killed between the rename and the event makes the task again, perhaps with another result."""
    for content in (labels()[:1], labels()[1:]):
        written = write_labels(store.scratch / "walked.h5", content)
        file = store.publish_shard(written, "candidates-r0001-b0000-l00")
        assert file == FileRef(path="shards/candidates-r0001-b0000-l00.h5", sha256=written.sha256)
        assert len(read_labels(store.absolute(file))) == len(content)
        assert list(store.scratch.iterdir()) == []


def test_a_shard_that_cannot_be_written_is_told_with_its_place(store):
    (store.root / "shards").rmdir()
    (store.root / "shards").touch()
    with pytest.raises(StoreError, match=r"shards: cannot be written.*Free space"):
        store.put_labels("labels-x", labels())


def test_clearing_scratch_removes_only_the_directory_of_that_task(store):
    for name in ("farwalk-label-r0000-0001", "farwalk-label-r0000-0002", "label-r0000-0001"):
        (store.scratch / name).mkdir()
    store.clear_scratch("label-r0000-0001")
    store.clear_scratch("label-r0000-0001")
    assert sorted(path.name for path in store.scratch.iterdir()) == ["farwalk-label-r0000-0002", "label-r0000-0001"]


def test_scratch_that_is_a_link_is_not_followed(store, tmp_path):
    (tmp_path / "precious").mkdir()
    (tmp_path / "precious" / "data").write_text("x")
    (store.scratch / "farwalk-t").symlink_to(tmp_path / "precious")
    store.clear_scratch("t")
    assert (tmp_path / "precious" / "data").exists()


def test_unfinished_writes_of_a_killed_driver_are_removed_and_nothing_else(store):
    for name in (".labels-1.h5.123.tmp", "labels-1.h5", ".hidden"):
        (store.root / "shards" / name).touch()
    store.discard_unfinished()
    assert sorted(path.name for path in (store.root / "shards").iterdir()) == [".hidden", "labels-1.h5"]


def test_scratch_of_tasks_that_are_made_again_goes_and_that_of_labels_stays(store):
    for name in ("walk-r0001-0000-l00", "select-r0001-0000", "train-v0001", "label-r0000-0001"):
        (store.scratch_of(name) / "12-34").mkdir(parents=True)
    (store.scratch / "walk-of-mine").mkdir()
    store.discard_unfinished()
    assert sorted(path.name for path in store.scratch.iterdir()) == ["farwalk-label-r0000-0001", "walk-of-mine"]


def test_the_lock_names_its_holder_and_is_free_afterwards(store):
    assert holder_of(store.lock_path) == ""
    with DriverLock(store.lock_path):
        assert f"pid {os.getpid()}" in holder_of(store.lock_path)
        with pytest.raises(StoreError, match=f"pid {os.getpid()}"), DriverLock(store.lock_path):
            pass
        assert holder_of(store.lock_path)
    assert holder_of(store.lock_path) == ""
    with DriverLock(store.lock_path):
        pass


def test_the_lock_of_a_killed_process_is_taken_over(store):
    code = (
        "import sys, time; from pathlib import Path; from pipeline.lock import DriverLock\n"
        "with DriverLock(Path(sys.argv[1])): print('held', flush=True); time.sleep(60)"
    )
    process = subprocess.Popen([sys.executable, "-c", code, str(store.lock_path)], stdout=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stdout.readline() == b"held\n"
    with pytest.raises(StoreError, match=f"pid {process.pid}"), DriverLock(store.lock_path):
        pass
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert f"pid {process.pid}" in store.lock_path.read_text()
    with DriverLock(store.lock_path):
        assert f"pid {os.getpid()}" in holder_of(store.lock_path)
