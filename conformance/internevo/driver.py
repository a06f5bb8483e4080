"""Training entry for the InternEvo wheel, which ships no train.py: InternEvo's public functions, called in order.

It logs, and ends after an exception, as train.py does, so that one parser and one judgement serve both.
"""

from __future__ import annotations

import socket
import time
import traceback
from functools import partial
from pathlib import Path
from typing import Any


def main() -> None:
    """Initialise the distributed environment from sys.argv and train; an exception is logged, not raised."""
    from internlm.core.context import global_context as gpc
    from internlm.initialize import initialize_distributed_env
    from internlm.utils.common import parse_args
    from internlm.utils.logger import get_logger

    args = parse_args()
    initialize_distributed_env(config=args.config, launcher=args.launcher, master_port=args.port, seed=args.seed)
    try:
        train(Path(args.config))
    except Exception:
        get_logger(__file__).error(
            f"Raise exception from {socket.gethostname()} with rank id: {gpc.get_global_rank()}\n"
            f"{traceback.format_exc()}"
        )


def train(config: Path) -> None:
    """Build model, data, optimizer and trainer from the loaded configuration, and run every step.

    Args:
        config: The configuration file, whose text goes into checkpoints and the TensorBoard log.
    """
    import internlm
    import torch
    import torch.distributed as dist
    from internlm.core.context import global_context as gpc
    from internlm.core.trainer import TrainState
    from internlm.model.loss import FlashGPTLMLoss
    from internlm.train import (
        get_train_data_loader,
        initialize_model,
        initialize_optimizer,
    )
    from internlm.utils.common import launch_time
    from internlm.utils.logger import get_logger

    logger = get_logger(__file__)
    started = [launch_time()]
    dist.broadcast_object_list(started, src=0)

    model = initialize_model()
    criterion = FlashGPTLMLoss(parallel_output=True, label_smoothing=gpc.config.loss.label_smoothing)
    train_dl, data_types = get_train_data_loader(num_worker=4)
    state = TrainState(gpc.config, train_dl.batch_sampler)
    optimizer, beta2_scheduler, lr_scheduler = initialize_optimizer(model=model)
    text = config.read_text()
    parts = {"model": model, "optimizer": optimizer, "lr_scheduler": lr_scheduler, "train_dl": train_dl}
    checkpoints = _checkpoints(text, **parts)
    checkpoints.try_resume_training(state, started[0])
    metric = _metric(data_types, torch.cuda.current_device())
    trainer, train_dl, _, _ = internlm.initialize_trainer(
        model=model,
        optimizer=optimizer,
        criterion=criterion,
        train_dataloader=train_dl,
        lr_scheduler=lr_scheduler,
        beta2_scheduler=beta2_scheduler,
        scheduler_hooks=[_metric_hook(metric)],
    )
    record = partial(
        _record_step,
        logger=logger,
        writer=_writer(started[0], state, text, logger),
        optimizer=optimizer,
        beta2_scheduler=beta2_scheduler,
        trainer=trainer,
        metric=metric,
    )
    _run_steps(trainer, train_dl, state, checkpoints, metric, record)
    checkpoints.wait_async_upload_finish()


def _checkpoints(config: str, **parts: Any) -> Any:
    from internlm.core.context import global_context as gpc
    from internlm.utils.model_checkpoint import CheckpointManager

    return CheckpointManager(
        ckpt_config=gpc.config.ckpt,
        model_config=gpc.config.model,
        model_config_file=config,
        feishu_address=None,
        **parts,
    )


def _run_steps(trainer: Any, train_dl: Any, state: Any, checkpoints: Any, metric: Any, record: Any) -> None:
    from internlm.core.context import global_context as gpc
    from internlm.train import load_new_batch
    from internlm.utils.gputest import empty_cache_and_diag
    from internlm.utils.megatron_timers import megatron_timer as timer

    trainer.train()
    batches = iter(train_dl)
    for step in range(state.batch_count, gpc.config.data.total_steps):
        empty_cache_and_diag(step, interval=gpc.config.data.empty_cache_and_diag_interval)
        begun = time.time()
        timer("one-batch").start()
        gpc.config.batch_count = step
        batch, batches = load_new_batch(train_dl=train_dl, train_iter=batches, train_state=state)
        state.batch_count = step
        state.num_consumed_samples_in_epoch += len(batch[1])
        trainer.zero_grad()
        if batch[0].get("type_ids") is not None:
            metric.set_current_type_ids(type_ids=batch[0].pop("type_ids"))

        timer("fwd-bwd").start()
        loss = trainer.execute_schedule(batch, forward_only=False, return_loss=True, return_output_label=False)[2]
        timer("fwd-bwd").stop()
        updated, grad_norm = trainer.step()
        if updated:
            state.step_count += 1
        else:
            state.inf_nan_skip_batches += 1
        record(
            success_update=updated,
            batch_count=step,
            batch=batch,
            train_state=state,
            start_time=begun,
            loss=loss,
            grad_norm=grad_norm,
        )
        timer("one-batch").stop()
        if checkpoints.try_save_checkpoint(state):
            break


def _record_step(**values: Any) -> None:
    from internlm.core.context import ParallelMode
    from internlm.core.context import global_context as gpc
    from internlm.train import record_current_batch_training_metrics
    from internlm.utils.common import get_megatron_flops

    data, model = gpc.config.data, gpc.config.model
    tflops = partial(
        get_megatron_flops,
        checkpoint=model.checkpoint,
        seq_len=data["seq_len"],
        hidden_size=model.hidden_size,
        num_layers=model.num_layers,
        vocab_size=model.vocab_size,
        global_batch_size=data.micro_bsz * data.micro_num * gpc.get_world_size(ParallelMode.DATA),
        global_world_size=gpc.get_world_size(ParallelMode.GLOBAL),
        mlp_ratio=model["mlp_ratio"],
    )
    record_current_batch_training_metrics(get_tflops_func=tflops, moe_loss=None, update_panel=False, **values)


def _metric(data_types: list[str], device: Any) -> Any:
    from internlm.core.context import ParallelMode
    from internlm.core.context import global_context as gpc
    from internlm.model.metrics import AccPerplex

    return AccPerplex(
        device=device,
        tp_pg=gpc.get_group(ParallelMode.TENSOR),
        dp_pg=gpc.get_group(ParallelMode.DATA),
        dataset_types=data_types,
    )


def _metric_hook(metric: Any) -> Any:
    from internlm.core.context import global_context as gpc
    from internlm.core.scheduler import SchedulerMetricHook

    interleaved = gpc.is_using_pp() and gpc.config.model.get("num_chunks", 1) > 1
    return SchedulerMetricHook(
        metric=metric, skip=interleaved and gpc.config.parallel["pipeline"].get("interleaved_overlap", False)
    )


def _writer(started: str, state: Any, config: str, logger: Any) -> Any:
    from internlm.core.context import global_context as gpc
    from internlm.utils.parallel import get_parallel_log_file_name
    from internlm.utils.writer import Writer

    return Writer(
        job_name=gpc.config.JOB_NAME,
        launch_time=started,
        file_name=get_parallel_log_file_name(),
        tensorboard_folder=gpc.config.tensorboard_folder,
        resume_tb_folder=state.resume_tb_folder,
        step_count=state.step_count,
        config=config,
        logger=logger,
        enable_tb=gpc.config.enable_tb,
        queue_max_length=gpc.config.tensorboard.queue_max_length,
        total_steps=gpc.config.data.total_steps,
    )
