"""Files are replaced as a whole, whoever else writes or reads, and keep what they are: mode, owner, link."""

from __future__ import annotations

import errno
import os
import signal
import stat
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

import numpy as np
import pytest
from conftest import environment

import bpcore as bp
from bpcore import checkpoint, files

posix = pytest.mark.skipif(os.name != "posix", reason="POSIX's modes, links, locks and signals")
NET = bp.Network(bp.MLP([4, 5, 3]), seed=1)
HISTORY = bp.History([{"epoch": 1, "training_loss": 0.5}])


def picture(path):
    pytest.importorskip("matplotlib")
    bp.learning_curve(HISTORY, path)


# every kind of file that bpcore writes; a data set comes from a network, and is written by files.write too
WRITERS = {
    "run.safetensors": NET.save,
    "log.csv": HISTORY.write,
    "log.jsonl": HISTORY.write,
    "curve.png": picture,
    "curve.svg": picture,
    "text": lambda path: files.write(path, b"text"),
}
every_writer = pytest.mark.parametrize(("name", "write"), WRITERS.items(), ids=WRITERS)


@posix
@every_writer
@pytest.mark.parametrize("mode", [0o600, 0o640, 0o666, 0o755])
def test_the_mode_stays(name, write, mode, tmp_path):
    """Whatever the umask; a new file has the usual mode."""
    path, old = tmp_path / name, os.umask(0o027)
    try:
        write(path)
        assert stat.S_IMODE(path.stat().st_mode) == 0o640
        path.chmod(mode)
        write(path)
    finally:
        os.umask(old)
    assert stat.S_IMODE(path.stat().st_mode) == mode
    assert os.listdir(tmp_path) == [name]


@posix
@pytest.mark.skipif(os.name == "posix" and os.getuid() != 0, reason="only root gives files away")
@every_writer
def test_the_owner_stays(name, write, tmp_path):
    path = tmp_path / name
    write(path)
    os.chown(path, 65534, 65533)
    path.chmod(0o4640)
    write(path)
    found = path.stat()
    assert (found.st_uid, found.st_gid, stat.S_IMODE(found.st_mode)) == (65534, 65533, 0o4640)


@posix
@every_writer
def test_a_link_stays(name, write, tmp_path):
    """Relative and through another link, also where its target is not there yet."""
    (tmp_path / "folder").mkdir()
    target, link, over = tmp_path / "folder" / name, tmp_path / name, tmp_path / f"over.{name}"
    link.symlink_to(Path("folder") / name)
    over.symlink_to(name)
    for _ in range(2):  # dangling at first
        target.unlink(missing_ok=True)
        write(over)
        assert link.is_symlink()
        assert over.is_symlink()
        assert target.is_file()
    assert os.listdir(tmp_path / "folder") == [name]


@posix
def test_links_in_a_circle(tmp_path):
    (tmp_path / "a").symlink_to("b")
    (tmp_path / "b").symlink_to("a")
    with pytest.raises(OSError, match=r"cannot write .*a: its links lead in a circle"):
        files.write(tmp_path / "a", b"text")
    assert (tmp_path / "a").is_symlink()


@posix
def test_a_hard_link_keeps_the_old_content(tmp_path):
    files.write(tmp_path / "a", b"old")
    os.link(tmp_path / "a", tmp_path / "b")
    files.write(tmp_path / "a", b"new")
    assert ((tmp_path / "a").read_bytes(), (tmp_path / "b").read_bytes()) == (b"new", b"old")


@posix
@every_writer
def test_devices_and_pipes_are_written_directly(name, write, tmp_path):
    if name.startswith("run"):
        write("/dev/null")
        assert stat.S_ISCHR(os.stat("/dev/null").st_mode)
    path, got = tmp_path / name, []
    os.mkfifo(path)
    reader = threading.Thread(target=lambda: got.append(path.read_bytes()))
    reader.start()
    write(path)
    reader.join(30)
    assert stat.S_ISFIFO(path.stat().st_mode)
    write(tmp_path / f"plain.{name}")
    assert name == "curve.svg" or got == [(tmp_path / f"plain.{name}").read_bytes()]  # an .svg has the date in it


@posix
def test_where_one_may_not_write():
    """A file that is read-only is not replaced, though its folder would permit it; nor does anything begin in a closed folder."""
    code = (
        "import os, sys, safetensors, bpcore as bp\n"  # all that is imported, before the other user may read nothing of it
        "from bpcore import files\n"
        "if os.getuid() == 0: os.setuid(65534)\n"
        "for path in sys.argv[1:]:\n"
        "    try: files.write(path, b'new')\n"
        "    except PermissionError as error: print(error)\n"
        "os.chmod('dark', 0)\n"
        "try: bp.Network.load('dark/file')\n"
        "except PermissionError as error: print(error)\n"
    )
    with tempfile.TemporaryDirectory(dir="/tmp") as name:  # a folder that another user may enter, as those of pytest are not
        folder = Path(name)
        folder.chmod(0o777)
        (folder / "closed").mkdir(mode=0o555)
        (folder / "dark").mkdir()
        if os.getuid() == 0:
            os.chown(folder / "dark", 65534, 65534)
        (folder / "kept").write_bytes(b"old")
        (folder / "kept").chmod(0o444)
        command = [sys.executable, "-c", code, *(str(folder / file) for file in ("closed/file", "kept", "new"))]
        done = subprocess.run(command, env=environment(), cwd=folder, capture_output=True, text=True, timeout=60, check=True)
        closed, kept, dark = done.stdout.splitlines()
        assert "dark/file: you may not enter its folder" in dark
        assert "you may make no file in" in closed
        assert "kept: the file is read-only; make it writable" in kept
        assert sorted(os.listdir(folder)) == ["closed", "dark", "kept", "new"]
        assert (folder / "kept").read_bytes() == b"old"


def test_where_nothing_can_be_written(tmp_path):
    for name, write in WRITERS.items():
        with pytest.raises(FileNotFoundError, match=r"there is no folder .*missing; make it first"):
            write(tmp_path / "missing" / name)
    (tmp_path / "folder.csv").mkdir()
    with pytest.raises(IsADirectoryError, match="it is a folder; name a file in it"):
        HISTORY.write(tmp_path / "folder.csv")


@every_writer
@pytest.mark.parametrize("at", ["replace", "open"])
def test_a_failure_leaves_the_old_file_and_nothing_else(name, write, at, tmp_path, monkeypatch):
    write(tmp_path / name)
    before = (tmp_path / name).read_bytes()

    def fail(*args, **named):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(files.os, at, fail)
        with pytest.raises(OSError, match=rf"cannot write .*{name}: {os.strerror(errno.ENOSPC)}; free space") as caught:
            write(tmp_path / name)
    assert caught.value.errno == errno.ENOSPC
    assert os.listdir(tmp_path) == [name]
    assert (tmp_path / name).read_bytes() == before


@pytest.mark.parametrize("error", [KeyboardInterrupt, MemoryError, ValueError])
def test_any_error_in_the_middle(error, tmp_path):
    def pieces():
        yield b"new"
        raise error

    files.write(tmp_path / "file", b"old")
    with pytest.raises(error):
        files.write(tmp_path / "file", pieces())
    assert os.listdir(tmp_path) == ["file"]
    assert (tmp_path / "file").read_bytes() == b"old"


def test_what_cannot_be_serialised_leaves_nothing(tmp_path):
    NET.save(tmp_path / "net")
    before = (tmp_path / "net").read_bytes()
    for tensors, header in (({"a": np.array(["text"])}, {}), ({}, {"object": object()})):
        with pytest.raises(TypeError):
            checkpoint.write(tmp_path / "net", tensors, header)
    assert os.listdir(tmp_path) == ["net"]
    assert (tmp_path / "net").read_bytes() == before


@posix
def test_a_full_disk(tmp_path):
    """A limit on the size of files stands in for it: the old files stay, and nothing is left over."""
    code = (
        "import resource, signal\n"
        "os.chdir(sys.argv[1])\n"
        "small, large = (bp.Network(bp.MLP([n, n, 3])) for n in (4, 200))\n"
        "history = lambda n: bp.History([{'epoch': i, 'loss': i / 3} for i in range(n)])\n"
        "small.save('net'); history(1).write('log.csv')\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (20000, 20000))\n"
        "for write in (lambda: large.save('net'), lambda: history(5000).write('log.csv'), lambda: large.save('new')):\n"
        "    try: write()\n"
        "    except OSError as error: print(error)\n"
        "small.save('net'); history(1).write('log.csv')\n"
    )
    command = [sys.executable, "-c", f"import os, sys, bpcore as bp\n{code}", str(tmp_path)]
    done = subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.count("cannot write") == 3
    assert sorted(os.listdir(tmp_path)) == ["log.csv", "net"]


WRITE_FOREVER = (
    "import sys, bpcore as bp\n"
    "net = bp.Network(bp.MLP([60, 60, 3]))\n"
    "net.theta[...] = float(sys.argv[2])\n"
    "print('begun', flush=True)\n"
    "while True: net.save(sys.argv[1])\n"
)


@posix
def test_many_writers_of_one_path_and_readers(tmp_path):
    """Threads and processes, some of which are killed on the way: each read is one whole file, and nothing is left over."""
    path, failures, reads = tmp_path / "net", [], []
    nets = [bp.Network(bp.MLP([60, 60, 3])) for _ in range(2)]
    for k, net in enumerate(nets):
        net.theta[...] = float(k)
    nets[0].save(path)
    stop = threading.Event()

    def repeat(work):
        try:
            while not stop.is_set():
                work()
        except Exception as error:
            failures.append(error)

    work = [lambda net=net: net.save(path) for net in nets] + [lambda: reads.append(set(bp.Network.load(path).theta.tolist()))]
    threads = [threading.Thread(target=repeat, args=(each,)) for each in work]
    for thread in threads:
        thread.start()
    for k in range(3):
        command = [sys.executable, "-c", WRITE_FOREVER, str(path), str(k + 2)]
        with subprocess.Popen(command, env=environment(), stdout=subprocess.PIPE, text=True) as process:
            process.stdout.readline()
            stop.wait(0.05 + 0.03 * k)
            process.send_signal(signal.SIGKILL)
    stop.set()
    for thread in threads:
        thread.join(30)
    assert failures == []
    assert len(reads) > 3
    assert all(len(found) == 1 for found in reads)
    nets[0].save(path)
    assert os.listdir(tmp_path) == ["net"]


@posix
def test_what_killed_writers_leave_is_removed_and_nothing_else(tmp_path):
    """Not the file of a writer that lives, nor files of others with similar names."""
    target = tmp_path / "net"
    living, file = files.locked(target)
    killed, other = files.locked(target)
    other.close()
    strangers = [".net.tmp", ".net.1234.tmp", f".other.{'0' * 16}.tmp", f".net.{'x' * 16}.tmp", f"net.{'0' * 16}.tmp"]
    for name in strangers:
        (tmp_path / name).write_bytes(b"")
    NET.save(target)
    assert sorted(os.listdir(tmp_path)) == sorted(["net", living.name, *strangers])
    assert not killed.exists()
    file.close()
    NET.save(target)
    assert sorted(os.listdir(tmp_path)) == sorted(["net", *strangers])


@posix
def test_a_temporary_file_that_is_taken_for_abandoned(tmp_path, monkeypatch):
    """Between its making and its locking another writer removes it: the writer makes another."""
    removed, lock = [], files.lock

    def late(file):
        if not removed:
            removed.append(file.name)
            files.remove_abandoned(tmp_path / "net")
        return lock(file)

    monkeypatch.setattr(files, "lock", late)
    NET.save(tmp_path / "net")
    assert not os.path.exists(removed[0])
    assert os.listdir(tmp_path) == ["net"]


def test_long_names(tmp_path):
    for name in ("n" * 255, "é" * 127):
        files.write(tmp_path / name, b"text")
        files.write(tmp_path / name, b"more")
        assert (tmp_path / name).read_bytes() == b"more"


@pytest.mark.parametrize("locks", [True, False])
def test_without_locks(locks, tmp_path, monkeypatch):
    """On Windows, where a rename may have to wait for a reader; on file systems without locks, nothing is removed."""
    tries, replace = [], os.replace

    def busy(*paths):
        tries.append(paths)
        if len(tries) < 4:
            raise PermissionError(errno.EACCES, "a reader has it open")
        replace(*paths)

    def no_locks(*args):
        raise OSError(errno.ENOLCK, "no locks")

    monkeypatch.setattr(files, "TRIES", 5)
    monkeypatch.setattr(files.os, "replace", busy)
    if not locks:
        monkeypatch.setattr(files, "fcntl", None)
    elif files.fcntl is not None:
        monkeypatch.setattr(files.fcntl, "flock", no_locks)
    files.write(tmp_path / "file", [b"te", memoryview(b"xt")])
    assert (tmp_path / "file").read_bytes() == b"text"
    assert len(tries) == 4
    (tmp_path / f".file.{'0' * 16}.tmp").write_bytes(b"")
    files.write(tmp_path / "file", b"text")
    assert len(os.listdir(tmp_path)) == 2
