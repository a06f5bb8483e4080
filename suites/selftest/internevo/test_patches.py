"""The run-time patches: each is needed, and each works, on the InternEvo that is installed or given."""

import json
import os
import subprocess
import sys
import textwrap

import pytest

from conformance.internevo.patches import PATCHES
from conformance.launch.torchrun import free_port

pytestmark = pytest.mark.needs("torch")

# A second InternEvo to prove the patches on, such as a checkout of a reference tag.
CHECKOUT = os.environ.get("CONFORMANCE_TEST_INTERNEVO", "")

CONFIG = textwrap.dedent(
    """
    JOB_NAME = "exhaust"
    model_type = "LLAMA2"
    DO_ALERT = False
    data = dict(seq_len=128, micro_num=1, micro_bsz=1, valid_micro_num=1, valid_every=0, pack_sample_into_one=False,
                total_steps=STEPS, skip_batches="", rampup_batch_size="", min_length=50, train_folder=FOLDER,
                valid_folder=None, empty_cache_and_diag_interval=1000, diag_outlier_ratio=1.1)
    ckpt = dict(enable_save_ckpt=False, auto_resume=False)
    model = dict(checkpoint=False, num_chunks=1, num_attention_heads=4, embed_split_hidden=True, vocab_size=256,
                 embed_grad_scale=1, parallel_output=True, hidden_size=64, num_layers=1, no_bias=True, mlp_ratio=3.5,
                 apply_post_layer_norm=False, dtype="torch.bfloat16", norm_type="rmsnorm", layer_norm_epsilon=1e-5,
                 num_kv_attention_heads=2, use_flash_attn=True)
    parallel = dict(zero1=dict(size=-1), tensor=dict(size=1, mode="mtp"),
                    pipeline=dict(size=1, interleaved_overlap=True),
                    weight=dict(size=1, overlap=True, memory_pool=True))
    hybrid_zero_optimizer = dict(overlap_sync_grad=True, overlap_sync_param=False, reduce_bucket_size=1 << 20,
                                 clip_grad_norm=1.0)
    grad_scaler = dict(fp16=dict(initial_scale=1, min_scale=1, growth_interval=1000), growth_factor=2,
                       backoff_factor=0.5, max_scale=2, hysteresis=2)
    loss = dict(label_smoothing=0)
    adam = dict(lr=1e-3, adam_beta1=0.9, adam_beta2=0.95, adam_beta2_c=0, adam_eps=1e-8, weight_decay=0.01)
    lr_scheduler = dict(total_steps=STEPS, init_steps=0, warmup_ratio=0.01, eta_min=1e-4, last_epoch=-1)
    beta2_scheduler = dict(init_beta2=0.95, c=0, cur_iter=-1)
    use_fp32_norm = False
    cudnn_deterministic = cudnn_benchmark = False
    monitor = dict(alert=dict(enable_feishu_alert=False, feishu_alert_address=None, light_monitor_address=None,
                              alert_file_path="alert.log"), tensorboard=dict(queue_max_length=10))
    """
)

# The worker's own preparation, with the patches of the test's choice.
PROGRAM = textwrap.dedent(
    """
    import runpy, sys
    from pathlib import Path
    from conformance.devices.cpu import CpuDevice
    from conformance.internevo import patches
    from conformance.kernels import install

    without, checkout, *training = sys.argv[1:]
    CpuDevice().activate()
    install()
    if checkout:
        sys.path.insert(0, checkout)
    patches.PATCHES = tuple(patch for patch in patches.PATCHES if patch.id != without)
    patches.apply_patches()
    sys.argv = ["train.py", *training]
    if checkout:
        runpy.run_path(str(Path(checkout) / "train.py"), run_name="__main__")
    else:
        from conformance.internevo import driver
        driver.main()
    """
)


def write_documents(folder, count):
    """``count`` documents of 64 tokens: two fill a packed sample of 128."""
    import numpy

    folder.mkdir(parents=True)
    lines = [
        json.dumps({"tokens": [(7 * number + i) % 250 for i in range(64)]}).encode() + b"\n" for number in range(count)
    ]
    (folder / "train.bin").write_bytes(b"".join(lines))
    offsets, at = [], 0
    for line in lines:
        offsets.append((at, 64))
        at += len(line)
    with (folder / "train.bin.meta").open("wb") as stream:
        numpy.save(stream, numpy.array(offsets, dtype=numpy.int32))


def train(folder, steps, without):
    write_documents(folder / "data" / "en", 40)
    (folder / "config.py").write_text(f"STEPS = {steps}\nFOLDER = 'data'\n" + CONFIG)
    env = os.environ | {
        "RANK": "0",
        "LOCAL_RANK": "0",
        "WORLD_SIZE": "1",
        "LOCAL_WORLD_SIZE": "1",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(free_port()),
        "OMP_NUM_THREADS": "1",
    }
    command = [sys.executable, "-c", PROGRAM, without, CHECKOUT, "--config", "config.py", "--launcher", "torch"]
    return subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, timeout=300, check=False)


def steps_of(result):
    return result.stderr.count(" loss=")


@pytest.mark.slow
def test_training_goes_on_when_the_data_end(tmp_path):
    result = train(tmp_path, steps=45, without="")
    assert "Raise exception" not in result.stderr, result.stderr[-2000:]
    assert steps_of(result) == 45


@pytest.mark.slow
def test_without_the_patch_training_stops_and_still_exits_with_0(tmp_path):
    result = train(tmp_path, steps=45, without="issue-77")
    assert "StopIteration" in result.stderr
    assert "Raise exception" in result.stderr
    assert 0 < steps_of(result) < 45
    assert result.returncode == 0


# Three batches into the second pass, a sampler that is loaded from the checkpoint goes on as the loader does.
SECOND_PASS = """
import sys
from types import SimpleNamespace
from conformance.devices.cpu import CpuDevice
from conformance.internevo import patches
from conformance.kernels import install

CpuDevice().activate()
install()
sys.path[:0] = sys.argv[1:]
patches.apply_patches()
from internlm.data.batch_sampler import StaticBatchSampler
from internlm.train import load_new_batch

def sampler():
    return StaticBatchSampler([range(40)], batch_size=4, rampup_batch_size="", micro_bsz=1, seed=1024)

class Loader(list):
    def __iter__(self):
        return (({}, batch.tolist()) for batch in loaders)

loaders = sampler()
copied = loaders.copy()
state = SimpleNamespace(batch_sampler=copied, batch_sampler_iter=iter(copied), num_consumed_samples_in_epoch=0)
batches, seen = iter(Loader()), []
for _ in range(20):
    batch, batches = load_new_batch(train_dl=Loader(), train_iter=batches, train_state=state)
    seen.append(batch[1])
    if len(seen) == 13:
        saved = copied.state_dict()
assert seen[:10] != seen[10:] and sorted(sum(seen[:10], [])) == sorted(sum(seen[10:], [])) == list(range(40))
resumed = sampler()
resumed.load_state_dict(saved)
assert [batch.tolist() for batch in resumed] == seen[13:], "resumed in another order"
"""


def test_a_checkpoint_of_a_later_pass_resumes_in_its_order():
    command = [sys.executable, "-c", SECOND_PASS, *filter(None, [CHECKOUT])]
    result = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert result.returncode == 0, result.stderr[-1000:]


@pytest.mark.slow
@pytest.mark.skipif(
    sys.version_info < (3, 11, 4), reason="Python accepts brackets around an IPv4 address before 3.11.4"
)
def test_without_the_patch_the_rendezvous_address_is_refused(tmp_path):
    result = train(tmp_path, steps=1, without="ipv4-brackets")
    assert result.returncode != 0
    assert "IPv4 address" in result.stderr


@pytest.mark.slow
@pytest.mark.skipif(bool(CHECKOUT), reason="a checkout has internlm.moe")
def test_without_the_patch_the_wheel_does_not_import(tmp_path):
    result = train(tmp_path, steps=1, without="wheel-moe")
    assert result.returncode != 0
    assert "internlm.moe" in result.stderr


LOADING = """
import sys, io, numpy, torch
from conformance.devices.cpu import CpuDevice
from conformance.internevo import patches

CpuDevice().activate()
if sys.argv[1]:
    next(patch for patch in patches.PATCHES if patch.id == "torch-load").apply()
file = io.BytesIO()
torch.save({"indices": numpy.arange(3), "weight": torch.ones(2)}, file)
file.seek(0)
states = torch.load(file, map_location=torch.device("cuda:0"))
assert states["weight"].device.type == "cpu" and states["indices"].tolist() == [0, 1, 2]
"""


@pytest.mark.parametrize("patched", ["yes", ""])
def test_a_checkpoint_with_the_samplers_state_is_loaded_only_with_the_patch(patched):
    import torch

    command = [sys.executable, "-c", LOADING, patched]
    result = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    needed = next(patch for patch in PATCHES if patch.id == "torch-load").needed()
    assert needed == (tuple(map(int, torch.__version__.split(".")[:2])) >= (2, 6))
    assert (result.returncode == 0) == bool(patched or not needed), result.stderr[-1000:]


def test_every_patch_is_declared_in_full():
    assert len({patch.id for patch in PATCHES}) == len(PATCHES)
    for patch in PATCHES:
        assert patch.reason
        assert patch.affects
        assert len(patch.digest) == 64
    assert len({patch.digest for patch in PATCHES}) == len(PATCHES)
