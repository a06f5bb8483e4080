from __future__ import annotations

import fcntl
import gzip
import hashlib
import json
import os
import random
import re
import runpy
import signal
import subprocess
import sys
import time
from contextlib import suppress
from itertools import pairwise
from pathlib import Path

import numpy as np
import psutil
import pytest

from conformance import data
from conformance.data import inputs, preparing
from conformance.errors import DataError, SourceError
from conformance.internevo.source import PINS, find_source

# Of the files that tools/tokenizer.py made of the corpus, the same on both tags: bin, bin.meta.
BY_INTERNEVO = {
    "corpus-json": (
        "279ebfb6afb2c981791c6630bc93c87cb5c3abe56b2d9aa3c8b5473fcd527779",
        "2af9316fee7aa476050726171c2dc018a0a483a7c5e865c347df24996a6ab3d8",
    ),
    "corpus-jsonl": (
        "38ab88e0b9060c86c7c0c718a0e646ada8ed8990c7b43dfe05b7f8c0f857cff4",
        "84853557ce064e39be6658ab854d56182eb147b4689cdec63b48fca94f6dad56",
    ),
    "corpus-txt": (
        "7b53456977f030716af611ee9fb65b5ce35cee3a1e44e6369062e9600bd4fde9",
        "6da1cf625decb92d55666a9b557fcd938478cbbeae1b2c46b165b219c97d3198",
    ),
    "nasty-json": (
        "54bc462c9104f409fd1242ba0432b6953465ed58483c3f1b3aa1a035e89fccd6",
        "adff83bd1618190182bbcd83bf1739181f3c5af216d40059e0dbf1953ff90499",
    ),
    "nasty-jsonl": (
        "dd0a4b088cd8c68adaae52c2f774e934be31e9b122fe52f89edd234610971795",
        "5d2b16d85c50a0004266b7a72738db251b18449d79c4de932f2e3094076c845a",
    ),
    "nasty-txt": (
        "286dad8831fe4e5fdfa3aab0c48167208ba06ec14f7a5d6e03d887267d1fc7f4",
        "207e36f507594b7baee4ed6e645b56b5e0443ea25543ced48c8432973bc1e6df",
    ),
}


def made(out: Path) -> dict[str, str]:
    """Digest of every file that InternEvo would read."""
    train = data.train_folder(out)
    paths = sorted(path for path in train.rglob("*") if path.is_file())
    return {path.relative_to(train).as_posix(): digest(path) for path in paths}


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.fixture
def small_blocks(monkeypatch):
    monkeypatch.setattr(inputs, "BLOCK_BYTES", 4096)


def test_raw_mode_makes_the_bytes_that_internevos_script_made(corpus, tokenizer, tmp_path):
    data.prepare([corpus], tokenizer, tmp_path / "out", workers=2)
    found = made(tmp_path / "out")
    for name, (bin_digest, meta_digest) in BY_INTERNEVO.items():
        assert found.pop(f"en/{name}-00000.bin") == bin_digest, name
        assert found.pop(f"en/{name}-00000.bin.meta") == meta_digest, name
    assert not found


def checkouts() -> list[Path]:
    given = os.environ.get("CONFORMANCE_TEST_INTERNEVO", "").split(os.pathsep)
    return [Path(path) for path in given if (Path(path) / "tools" / "tokenizer.py").is_file() and path]


@pytest.mark.slow
@pytest.mark.parametrize("tag", [pin.tag for pin in PINS.values() if not pin.is_wheel])
def test_raw_mode_makes_the_bytes_of_internevos_script_run_beside_it(tag, corpus, tokenizer, tmp_path):
    script = runpy.run_path(str(Path(__file__).with_name("internevo_script.py")))
    sources = []
    for path in checkouts():
        try:
            sources.append(find_source(path, tag))
        except SourceError:
            continue
    source = next((source for source in sources if source.pristine and source.tag == tag), None)
    if source is None:
        pytest.skip(f"set CONFORMANCE_TEST_INTERNEVO to a checkout of {tag}")
    if reason := script["missing"]():
        pytest.skip(reason)
    tool = script["lay_out"](source.root, tokenizer, tmp_path / "internevo")
    data.prepare([corpus], tokenizer, tmp_path / "out", workers=2)
    for text in sorted(corpus.iterdir()):
        expected = tmp_path / f"{text.stem}-00000.bin"
        script["run_script"](tool, text, expected)
        for path in (expected, expected.with_name(expected.name + ".meta")):
            found = data.train_folder(tmp_path / "out") / "en" / path.name
            assert found.read_bytes() == path.read_bytes(), path.name


@pytest.mark.parametrize("workers", [1, 3])
def test_the_number_of_workers_does_not_matter(workers, corpus, tokenizer, tmp_path, small_blocks):
    one = data.prepare([corpus], tokenizer, tmp_path / "one", workers=2).fingerprint
    other = data.prepare([corpus], tokenizer, tmp_path / "other", workers=workers).fingerprint
    assert one == other
    assert len(one.shards) == 6


@pytest.mark.parametrize("packing", ["gz", "zst"])
def test_a_packed_file_makes_the_bytes_of_the_plain_one(packing, corpus, tokenizer, tmp_path, small_blocks):
    pack = gzip.compress if packing == "gz" else pytest.importorskip("backports.zstd").compress
    packed = tmp_path / "packed"
    packed.mkdir()
    for path in corpus.iterdir():
        text = path.read_bytes()
        # Two members, as pigz, zstd -T0 or cat make them.
        (packed / f"{path.name}.{packing}").write_bytes(pack(text[:5000]) + pack(text[5000:]))
    plain = data.prepare([corpus], tokenizer, tmp_path / "plain", workers=2)
    again = data.prepare([packed], tokenizer, tmp_path / "again", workers=2)
    assert again.fingerprint == plain.fingerprint
    assert again.broken == plain.broken


def test_a_field_is_encoded_alone(tokenizer, tmp_path):
    texts = ["Hello there.", "\u4f60\u597d", "two\nlines"]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"text": text, "id": 1}) + "\n" for text in texts))
    (tmp_path / "b.json").write_text(json.dumps([{"text": text} for text in texts]))
    found = data.prepare([tmp_path / "a.jsonl", tmp_path / "b.json"], tokenizer, tmp_path / "out", field="text")
    processor = pytest.importorskip("sentencepiece").SentencePieceProcessor(model_file=str(tokenizer))
    for name in ("a", "b"):
        lines = (data.train_folder(tmp_path / "out") / f"en/{name}-00000.bin").read_text().splitlines()
        assert [json.loads(line)["tokens"] for line in lines] == [[1, *processor.encode(text), 2] for text in texts]
    assert found.fingerprint.mode == "field:text"
    assert found.broken == 0


@pytest.mark.parametrize("field", [None, "text"])
def test_broken_lines_are_counted_shown_and_by_choice_fatal(field, tokenizer, tmp_path):
    source = tmp_path / "a.jsonl"
    source.write_bytes(b'{"text": "good"}\n{"text": "\xff"}\n{"text": "cut\n{"text": "good"}\n')
    prepared = data.prepare([source], tokenizer, tmp_path / "out", field=field, workers=1)
    assert [str(example) for example in prepared.examples] == [
        f"{source}, line 2: byte 10 of the line is not UTF-8",
        f"{source}, line 3: the line is not JSON",
    ]
    assert prepared.broken == 2
    # InternEvo's script never parses a line; what is text stays a document of it.
    assert prepared.fingerprint.documents == (3 if field is None else 2)
    with pytest.raises(DataError, match=r"a\.jsonl, line 2: byte 10 of the line is not UTF-8\."):
        data.prepare([source], tokenizer, tmp_path / "strict", field=field, workers=1, strict=True)


def test_broken_lines_are_numbered_across_blocks_and_only_the_first_are_kept(tokenizer, tmp_path, small_blocks):
    source = tmp_path / "a.jsonl"
    source.write_bytes(b'{"text": "good"}\n{"text": "\xff"}\n' * 3000)
    prepared = data.prepare([source], tokenizer, tmp_path / "out", workers=2)
    assert prepared.broken == 3000
    assert [example.line for example in prepared.examples] == list(range(2, 42, 2))


def test_shards_stay_under_the_limit_and_hold_every_document(corpus, tokenizer, tmp_path, small_blocks, monkeypatch):
    whole = data.prepare([corpus], tokenizer, tmp_path / "whole", workers=2).fingerprint
    assert np.iinfo(np.int32).max == preparing.SHARD_BYTES
    monkeypatch.setattr(preparing, "SHARD_BYTES", 50_000)
    parted = data.prepare([corpus], tokenizer, tmp_path / "parted", workers=2).fingerprint
    assert max(shard.bytes for shard in parted.shards) <= 50_000
    assert len(parted.shards) > 12
    assert data.check(tmp_path / "parted") == []
    for name in {shard.name.rsplit("-", 1)[0] for shard in whole.shards}:
        parts = [shard.name for shard in parted.shards if shard.name.rsplit("-", 1)[0] == name]
        assert parts == [f"{name}-{number:05d}.bin" for number in range(len(parts))]
        joined = b"".join((data.train_folder(tmp_path / "parted") / part).read_bytes() for part in parts)
        assert joined == (data.train_folder(tmp_path / "whole") / f"{name}-00000.bin").read_bytes()


def test_an_input_without_documents_makes_no_shard(tokenizer, tmp_path):
    (tmp_path / "a.txt").write_text("\n \n")
    (tmp_path / "b.txt").write_text("one\n")
    (tmp_path / "c.json").write_text("[ ]")
    inputs = [tmp_path / name for name in ("a.txt", "b.txt", "c.json")]
    found = data.prepare(inputs, tokenizer, tmp_path / "out", workers=1).fingerprint
    assert [shard.name for shard in found.shards] == ["en/b-00000.bin"]
    with pytest.raises(DataError, match=r"a\.txt holds no text in 3 bytes"):
        data.prepare(inputs[:1], tokenizer, tmp_path / "none", workers=1)


def test_progress_ends_with_everything_done(corpus, tokenizer, tmp_path, small_blocks):
    told: list[data.Progress] = []
    found = data.prepare([corpus], tokenizer, tmp_path / "out", workers=2, on_progress=told.append)
    size = sum(path.stat().st_size for path in corpus.iterdir())
    assert len(told) > 20
    assert all(before.bytes <= after.bytes for before, after in pairwise(told))
    assert (told[-1].bytes, told[-1].total_bytes) == (size, size)
    assert (told[-1].documents, told[-1].tokens) == (found.fingerprint.documents, found.fingerprint.tokens)
    assert told[-1].broken == found.broken


def test_only_a_few_blocks_are_in_work_at_once(corpus, tokenizer, tmp_path, small_blocks, monkeypatch):
    """Memory depends on the workers, not on the input: two blocks each are in work, and one is being read."""
    real, taken, ahead = inputs.blocks, [], []

    def blocks(source, start):
        for block in real(source, start):
            taken.append(block.start)
            yield block

    monkeypatch.setattr(inputs, "blocks", blocks)
    source = corpus / "corpus-jsonl.jsonl"
    data.prepare(
        [source], tokenizer, tmp_path / "out", workers=2, on_progress=lambda _: ahead.append(len(taken) - len(ahead))
    )
    assert len(ahead) > 20
    assert max(ahead) <= 2 * 2 + 1


def test_a_finished_folder_is_left_alone(corpus, tokenizer, tmp_path):
    first = data.prepare([corpus], tokenizer, tmp_path / "out", workers=2)
    told: list[data.Progress] = []
    assert data.prepare([corpus], tokenizer, tmp_path / "out", on_progress=told.append) == first
    assert told == []


@pytest.mark.parametrize("change", ["mode", "tokenizer", "inputs"])
def test_another_command_does_not_go_on_in_the_folder(change, corpus, tokenizer, tmp_path):
    data.prepare([corpus / "corpus-jsonl.jsonl"], tokenizer, tmp_path / "out", workers=1)
    source, field = corpus / "corpus-jsonl.jsonl", None
    if change == "mode":
        field = "text"
    elif change == "tokenizer":
        other = tmp_path / "other.model"
        other.write_bytes(tokenizer.read_bytes() + b"\x22\x00")  # an empty self_test_data
        tokenizer = other
    else:
        os.utime(source, (1, 1))
    with pytest.raises(DataError, match=f"begun with other {change}"):
        data.prepare([source], tokenizer, tmp_path / "out", field=field)


def test_a_foreign_folder_is_refused(corpus, tokenizer, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.txt").write_text("mine")
    with pytest.raises(DataError, match=r"holds thesis\.txt"):
        data.prepare([corpus], tokenizer, tmp_path / "out")
    assert (tmp_path / "out" / "thesis.txt").read_text() == "mine"


def test_two_preparations_do_not_share_a_folder(corpus, tokenizer, tmp_path):
    (tmp_path / "out").mkdir()
    with (tmp_path / "out" / preparing.LOCK).open("ab") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(DataError, match="Another process prepares"):
            data.prepare([corpus], tokenizer, tmp_path / "out")


def test_a_text_file_has_no_fields(corpus, tokenizer, tmp_path):
    with pytest.raises(DataError, match=r"nasty-txt\.txt has no fields"):
        data.prepare([corpus / "nasty-txt.txt"], tokenizer, tmp_path / "out", field="text")


def test_a_full_disk_is_a_sentence(corpus, tokenizer, tmp_path, monkeypatch):
    def full(*args):
        raise OSError(28, "No space left on device", "x.bin")

    monkeypatch.setattr(preparing.shutil, "copyfileobj", full)
    with pytest.raises(DataError, match=r"x\.bin: No space left on device\. .* goes on where it stopped"):
        data.prepare([corpus], tokenizer, tmp_path / "out", workers=1)
    monkeypatch.undo()
    data.prepare([corpus], tokenizer, tmp_path / "out", workers=1)
    assert data.check(tmp_path / "out") == []


def test_a_killed_worker_is_a_sentence(corpus, tokenizer, tmp_path, small_blocks):
    def kill(progress):
        for worker in psutil.Process().children():
            with suppress(psutil.Error):  # one of an earlier test may be gone, or be a zombie still
                if "spawn_main" in " ".join(worker.cmdline()):
                    worker.kill()

    with pytest.raises(DataError, match="A worker process was killed"):
        data.prepare([corpus], tokenizer, tmp_path / "out", workers=2, on_progress=kill)
    data.prepare([corpus], tokenizer, tmp_path / "out", workers=2)
    assert data.check(tmp_path / "out") == []


def test_a_file_that_lost_what_was_synced_is_refused(corpus, tokenizer, tmp_path, small_blocks, monkeypatch):
    monkeypatch.setattr(preparing, "CHECKPOINT_SECONDS", 0.0)
    with pytest.raises(KeyboardInterrupt):
        data.prepare([corpus / "corpus-jsonl.jsonl"], tokenizer, tmp_path / "out", on_progress=stop_after(5, []))
    path = data.train_folder(tmp_path / "out") / "en/corpus-jsonl-00000.bin"
    os.truncate(path, path.stat().st_size // 2)
    with pytest.raises(DataError, match="lost what was written"):
        data.prepare([corpus / "corpus-jsonl.jsonl"], tokenizer, tmp_path / "out")


def stop_after(count, told):
    def stop(progress):
        told.append(progress)
        if len(told) == count:
            raise KeyboardInterrupt

    return stop


def test_an_interrupted_preparation_goes_on(corpus, tokenizer, tmp_path, small_blocks, monkeypatch):
    monkeypatch.setattr(preparing, "CHECKPOINT_SECONDS", 0.0)
    whole = data.prepare([corpus], tokenizer, tmp_path / "whole", workers=2)
    starts: list[int] = []
    while not (tmp_path / "out" / "fingerprint.json").exists():
        told: list[data.Progress] = []
        try:
            data.prepare([corpus], tokenizer, tmp_path / "out", workers=2, on_progress=stop_after(6, told))
        except KeyboardInterrupt:
            starts.append(told[0].documents)
    assert len(starts) > 3
    assert all(before < after for before, after in pairwise(starts))  # each went on behind the one before
    assert made(tmp_path / "out") == made(tmp_path / "whole")
    assert data.read_fingerprint(tmp_path / "out") == whole.fingerprint


CHILD = """
import sys
from pathlib import Path
from conformance import data
from conformance.data import inputs, preparing
inputs.BLOCK_BYTES, preparing.CHECKPOINT_SECONDS, preparing.SHARD_BYTES = 20_000, 0.02, 700_000
if __name__ == "__main__":
    data.prepare([Path(sys.argv[1])], Path(sys.argv[2]), Path(sys.argv[3]), workers=2)
"""


@pytest.mark.slow
def test_ctrl_c_is_a_sentence_and_the_same_command_goes_on(corpus, tokenizer, tmp_path):
    source, out = tmp_path / "big.jsonl", tmp_path / "out"
    text = (corpus / "corpus-jsonl.jsonl").read_bytes()
    source.write_bytes(b"".join(b'{"round": %d}\n' % number + text for number in range(300)))
    command = [sys.executable, "-m", "conformance.cli", "data", "prepare", str(source), "--tokenizer", str(tokenizer)]
    command += ["--workers", "2", "--out"]
    process = subprocess.Popen(
        [*command, str(out)], start_new_session=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    bins = out / "train/en/big-00000.bin"
    while not (bins.exists() and bins.stat().st_size):
        assert process.poll() is None
        time.sleep(0.01)
    family = psutil.Process(process.pid).children(recursive=True)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does: to all of them
    printed, said = process.communicate(timeout=60)
    assert process.returncode == 130
    assert re.fullmatch(r"Inputs: 1 file of \S+ MB: big\.jsonl\.\n", printed)
    assert said.endswith("conformance data: interrupted.\n")
    assert "Traceback" not in said
    assert psutil.wait_procs(family, timeout=20)[1] == []
    assert not (out / "fingerprint.json").exists()
    for folder in (out, tmp_path / "whole"):
        subprocess.run([*command, str(folder)], check=True, capture_output=True)
    assert made(out) == made(tmp_path / "whole")


@pytest.mark.slow
def test_ten_kills_at_random_moments_cost_no_byte(corpus, tokenizer, tmp_path):
    big = tmp_path / "big"
    big.mkdir()
    text = (corpus / "corpus-jsonl.jsonl").read_bytes()
    nasty = (corpus / "nasty-jsonl.jsonl").read_bytes() + b"\n"
    rounds = [b'{"round": %d}\n' % number for number in range(30)]  # or shards would repeat, and the check tell
    (big / "a.jsonl").write_bytes(b"".join(line + text + nasty for line in rounds))
    (big / "b.jsonl.gz").write_bytes(gzip.compress(b"".join(line + nasty * 9 + text for line in rounds), 1))
    child = tmp_path / "child.py"
    child.write_text(CHILD)

    def start(out):
        return subprocess.Popen([sys.executable, child, big, tokenizer, out])

    begin = time.monotonic()
    assert start(tmp_path / "whole").wait() == 0
    seconds = time.monotonic() - begin
    expected = made(tmp_path / "whole")
    assert len(expected) > 20  # shards and their indices
    moments, kills, folder, finished = random.Random(), 0, 0, False
    while kills < 10 or not finished:
        out = tmp_path / f"out{folder}"
        process = start(out)
        try:
            process.wait(moments.uniform(0.1, 1.0) * seconds if kills < 10 else None)
        except subprocess.TimeoutExpired:
            workers = psutil.Process(process.pid).children(recursive=True)
            process.kill()
            process.wait()
            kills += 1
            # A worker that outlived its parent would go on writing beside the next one's.
            assert psutil.wait_procs(workers, timeout=20)[1] == []
            finished = False
            continue
        assert process.returncode == 0
        assert made(out) == expected
        assert not list(out.glob(preparing.PARTS + "*"))
        finished = True
        folder += 1
    assert data.check(out) == []
