"""A plan: what a workload becomes on a topology, under overrides that the benchmark allows."""

from __future__ import annotations

import dataclasses
import difflib
import itertools
import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from conformance.errors import ConformanceError
from conformance.internevo.flops import FlopsPerToken, flops_per_token
from conformance.internevo.memory import Memory, Parallel, estimate
from conformance.spec.model import Model, Optimizer, Reference, Workload

DEFAULT_SEED = 1024  # InternEvo's own default

# The freedoms that every workload has.
SIZES = ("tensor", "pipeline", "zero1", "micro_bsz", "micro_num")
FREEDOMS = (*SIZES, "checkpoint")
# What a workload may free besides.
EXTRA_FREEDOMS = ("num_layers", "total_steps")

README = "AIChipBenchmark llm/LLaMa-V2/README.md"
NEAREST = 3  # how many legal settings a refusal suggests


@dataclass(frozen=True)
class Topology:
    """The devices that a run has.

    Args:
        nodes: Machines.
        devices_per_node: Devices of each.

    Raises:
        ConformanceError: Either is less than 1.
    """

    nodes: int
    devices_per_node: int

    def __post_init__(self) -> None:
        """Refuse a topology without devices."""
        for name in ("nodes", "devices_per_node"):
            if getattr(self, name) < 1:
                flag = "--" + name.replace("_", "-")
                raise ConformanceError(f"{flag} is {getattr(self, name)}, expected at least 1.")

    @property
    def cards(self) -> int:
        """Devices in all."""
        return self.nodes * self.devices_per_node


@dataclass(frozen=True)
class Violation:
    """One rule of the benchmark, or of InternEvo, that settings break.

    Args:
        rule: Short name of the rule.
        message: What was asked for, and what is allowed.
        source: Where the rule stands.
        nearest: Overrides, as for the command line, that would be legal in place of the ones given; nearest first.
    """

    rule: str
    message: str
    source: str
    nearest: tuple[str, ...] = ()


@dataclass(frozen=True)
class Settings:
    """The sizes of a run that the benchmark leaves free.

    Args:
        tensor: Tensor-parallel size.
        pipeline: Pipeline-parallel size.
        zero1: ZeRO-1 group size as InternEvo reads it: <= 0 the data-parallel group, 1 none, else the group's size.
        micro_bsz: Sequences in a micro batch.
        micro_num: Micro batches in a step.
    """

    tensor: int
    pipeline: int
    zero1: int
    micro_bsz: int
    micro_num: int


class PlanRefused(ConformanceError):  # noqa: N818  a refusal, not a fault
    """The settings break rules; all of them are listed.

    Args:
        workload: Name of the workload.
        cards: Devices in all.
        settings: The sizes that were refused.
        violations: Every violation, at least one.
    """

    def __init__(self, workload: str, cards: int, settings: Settings, violations: Sequence[Violation]) -> None:
        """Make one sentence of all violations."""
        nearest = dict.fromkeys(option for violation in violations for option in violation.nearest)
        super().__init__(
            f"{workload} cannot run like this: " + "; ".join(violation.message for violation in violations) + ".",
            f"Legal settings nearest to yours: {'; or '.join(nearest)}." if nearest else "",
        )
        self.workload = workload
        self.cards = cards
        self.settings = settings
        self.violations = tuple(violations)

    def to_json(self) -> dict[str, Any]:
        """Give the refusal as the object that ``conformance plan --json`` prints."""
        return {
            "workload": self.workload,
            "legal": False,
            "violations": [dataclasses.asdict(violation) for violation in self.violations],
            "disclosures": [],
            "cards": self.cards,
            "tensor_parallel": self.settings.tensor,
            "pipeline_parallel": self.settings.pipeline,
            "zero1": self.settings.zero1,
            "micro_bsz": self.settings.micro_bsz,
            "micro_num": self.settings.micro_num,
        }


@dataclass(frozen=True)
class Plan:
    """A legal run: everything that decides what is trained, and how it is cut.

    Args:
        workload: The workload as the spec has it.
        topology: The devices.
        model: Shape that is trained; the workload's, but for the layers of a slice.
        tensor: Tensor-parallel size.
        pipeline: Pipeline-parallel size.
        zero1: ZeRO-1 group size as configured.
        micro_bsz: Sequences in a micro batch.
        micro_num: Micro batches in a step.
        checkpoint: Whether activation checkpointing is on.
        total_steps: Optimizer steps.
        seed: Seed of the initialisation.
        disclosures: Departures from the reference that are allowed and told.
    """

    workload: Workload
    topology: Topology
    model: Model
    tensor: int
    pipeline: int
    zero1: int
    micro_bsz: int
    micro_num: int
    checkpoint: bool
    total_steps: int
    seed: int
    disclosures: tuple[str, ...]

    @property
    def cards(self) -> int:
        """Devices in all."""
        return self.topology.cards

    @property
    def data_parallel(self) -> int:
        """Data-parallel size."""
        return self.cards // (self.tensor * self.pipeline)

    @property
    def zero1_size(self) -> int:
        """Devices that share one copy of the optimizer state."""
        return self.zero1 if self.zero1 > 0 else self.data_parallel

    @property
    def global_batch_size(self) -> int:
        """Sequences in a step over all devices."""
        return self.micro_bsz * self.micro_num * self.data_parallel

    @property
    def tokens_per_step(self) -> int:
        """Tokens in a step over all devices."""
        return self.global_batch_size * self.model.seq_len

    @property
    def parameters(self) -> int:
        """Parameters of the model."""
        return self.model.parameters

    @property
    def flops_per_token(self) -> FlopsPerToken:
        """Floating-point operations per trained token."""
        return flops_per_token(self.model, self.checkpoint)

    @property
    def memory(self) -> Memory:
        """Estimated memory of the fullest device."""
        parallel = Parallel(
            self.tensor, self.pipeline, self.zero1_size, self.micro_bsz, self.micro_num, self.checkpoint
        )
        return estimate(self.model, self.workload.optimizer, parallel)

    def seconds_at(self, tgs: float) -> float:
        """Tell how long all steps take at a speed.

        Args:
            tgs: Tokens per device and second.

        Returns:
            Seconds of training, without start-up, checkpoints and evaluation.
        """
        return self.total_steps * self.tokens_per_step / (self.cards * tgs)

    def to_json(self) -> dict[str, Any]:
        """Give the plan as the object that ``conformance plan --json`` prints."""
        return {
            "workload": self.workload.name,
            "workload_digest": self.workload.digest,
            "legal": True,
            "violations": [],
            "disclosures": list(self.disclosures),
            "nodes": self.topology.nodes,
            "devices_per_node": self.topology.devices_per_node,
            "cards": self.cards,
            "data_parallel": self.data_parallel,
            "tensor_parallel": self.tensor,
            "pipeline_parallel": self.pipeline,
            "zero1": self.zero1,
            "micro_bsz": self.micro_bsz,
            "micro_num": self.micro_num,
            "global_batch_size": self.global_batch_size,
            "tokens_per_step": self.tokens_per_step,
            "steps": self.total_steps,
            "num_layers": self.model.num_layers,
            "checkpoint": self.checkpoint,
            "seed": self.seed,
            "parameters": self.parameters,
            "flops_per_token": dataclasses.asdict(self.flops_per_token),
            "memory_gib_per_device": dataclasses.asdict(self.memory),
        }


def parse_overrides(pairs: Iterable[str]) -> dict[str, Any]:
    """Parse what ``--set`` was given.

    Args:
        pairs: Strings of the form ``key=value``.

    Returns:
        Values by key: booleans, integers and floats where they look so, else strings. What `make_plan` accepts holds
        booleans and integers only.

    Raises:
        ConformanceError: A string has no such form, or a key is given two values.
    """
    overrides: dict[str, Any] = {}
    for pair in pairs:
        key, equals, text = (part.strip() for part in pair.partition("="))
        if not (key and equals and text):
            raise ConformanceError(f"--set got {pair!r}, expected key=value.", "For example: --set micro_bsz=1.")
        value = _parse_value(text)
        if overrides.setdefault(key, value) != value:
            raise ConformanceError(f"--set gives {key} two values, {overrides[key]} and {value}.", "Leave one out.")
    return overrides


def _parse_value(text: str) -> int | float | bool | str:
    if text.lower() in ("true", "false"):
        return text.lower() == "true"
    if re.fullmatch(r"[+-]?[0-9]{1,18}", text):
        return int(text)
    try:
        return float(text)
    except ValueError:
        return text


def make_plan(
    workload: Workload, topology: Topology, overrides: Mapping[str, Any] | None = None, *, seed: int = DEFAULT_SEED
) -> Plan:
    """Plan a workload on a topology.

    The global batch size is the reference's unless the overrides make it smaller: micro_num follows the data-parallel
    size, and where that cannot divide the batch the nearest smaller one is taken and disclosed.

    Args:
        workload: The workload.
        topology: The devices.
        overrides: Values to use in place of the reference's, as `parse_overrides` gives them.
        seed: Seed of the initialisation.

    Raises:
        ConformanceError: An override's key is unknown, or its value has the wrong type.
        PlanRefused: The settings break rules; all of them are listed, with the nearest legal settings.
    """
    overrides = dict(overrides or {})
    _demand_known(workload, overrides)
    violations = _fixed_violations(workload, overrides)
    sizes = {key: int(value) for key, value in overrides.items() if _is_free(workload, key) and key != "checkpoint"}
    violations += _extra_violations(workload, sizes)
    model = dataclasses.replace(workload.model, num_layers=sizes.get("num_layers", workload.model.num_layers))

    settings = _resolve(workload.reference, topology.cards, sizes)
    broken = list(_broken_rules(workload.reference, model, topology.cards, settings))
    nearest = _nearest(workload.reference, model, topology.cards, sizes) if broken else ()
    violations += [dataclasses.replace(violation, nearest=nearest) for violation in broken]
    if violations:
        raise PlanRefused(workload.name, topology.cards, settings, violations)

    checkpoint = bool(overrides.get("checkpoint", False))
    plan = Plan(
        workload=workload,
        topology=topology,
        model=model,
        **dataclasses.asdict(settings),
        checkpoint=checkpoint,
        total_steps=sizes.get("total_steps", workload.total_steps),
        seed=seed,
        disclosures=(),
    )
    return dataclasses.replace(plan, disclosures=tuple(_disclosures(plan)))


def _is_free(workload: Workload, key: str) -> bool:
    return key in FREEDOMS or key in workload.free


def _fixed_values(workload: Workload) -> dict[str, Any]:
    """Give what no override may change, by key."""
    values: dict[str, Any] = {
        **dataclasses.asdict(workload.model),
        **dataclasses.asdict(workload.optimizer),
        "data": workload.data,
        "tag": workload.tag,
        "total_steps": workload.total_steps,
    }
    return {key: value for key, value in values.items() if not _is_free(workload, key)}


def _demand_known(workload: Workload, overrides: Mapping[str, Any]) -> None:
    """Raise ConformanceError for a key that nothing has, or a value of the wrong type."""
    free = [*FREEDOMS, *workload.free]
    known = {*free, *_fixed_values(workload)}
    for key, value in overrides.items():
        if key not in known:
            close = difflib.get_close_matches(key, known, n=1)
            hint = f"Did you mean {close[0]}? " if close else ""
            raise ConformanceError(f"--set does not know {key!r}.", f"{hint}It may set {', '.join(free)}.")
        if key not in free:
            continue
        if key == "checkpoint" and not isinstance(value, bool):
            raise ConformanceError(f"--set {key} is {value!r}, expected true or false.")
        if key != "checkpoint" and (isinstance(value, bool) or not isinstance(value, int)):
            raise ConformanceError(f"--set {key} is {value!r}, expected an integer.")


def _fixed_violations(workload: Workload, overrides: Mapping[str, Any]) -> list[Violation]:
    """List the overrides that would change what the benchmark fixes."""
    fixed = _fixed_values(workload)
    model_keys = {field.name for field in dataclasses.fields(Model)}
    optimizer_keys = {field.name for field in dataclasses.fields(Optimizer)}
    violations = []
    for key, value in overrides.items():
        if key in fixed:
            table = "model." if key in model_keys else "optimizer." if key in optimizer_keys else ""
            violations.append(
                Violation(
                    rule="fixed",
                    message=f"{key} is fixed at {fixed[key]} and cannot be set, got {value}",
                    source=workload.source_of(table + key),
                    nearest=(f"leave out --set {key}",),
                )
            )
    return violations


def _extra_violations(workload: Workload, sizes: Mapping[str, int]) -> list[Violation]:
    """List what is wrong with the sizes that only some workloads free."""
    violations = [
        dataclasses.replace(_not_positive(key, sizes[key]), nearest=(f"--set {key}=1",))
        for key in EXTRA_FREEDOMS
        if sizes.get(key, 1) < 1
    ]
    most = workload.full_layers
    if most is not None and sizes.get("num_layers", most) > most:
        violations.append(
            Violation(
                rule="slice",
                message=f"num_layers={sizes['num_layers']} is above the {most} layers of the full shape",
                source=workload.source_of("full_layers"),
                nearest=(f"--set num_layers={most}",),
            )
        )
    return violations


def _not_positive(key: str, value: int) -> Violation:
    return Violation("positive", f"{key} is {value}, expected at least 1", f"{README}, 并行策略, note 2")


def _resolve(reference: Reference, cards: int, sizes: Mapping[str, int]) -> Settings:
    """Fill in what the overrides leave open."""
    tensor = sizes.get("tensor", reference.tensor)
    pipeline = sizes.get("pipeline", reference.pipeline)
    data_parallel = max(1, cards // max(1, tensor * pipeline))
    micro_bsz, micro_num = _micro_batches(
        reference.global_batch_size, data_parallel, max(1, pipeline), reference.micro_bsz, sizes
    )
    return Settings(tensor, pipeline, sizes.get("zero1", reference.zero1), micro_bsz, micro_num)


def _micro_batches(
    batch: int, data_parallel: int, pipeline: int, reference_bsz: int, sizes: Mapping[str, int]
) -> tuple[int, int]:
    """Choose micro_bsz and micro_num: as given, else for the largest batch that is not above the reference's."""
    if "micro_num" in sizes:
        return sizes.get("micro_bsz", reference_bsz), sizes["micro_num"]

    def fill(micro_bsz: int) -> int:
        return max(1, batch // (data_parallel * max(1, micro_bsz)))

    if "micro_bsz" in sizes:
        return sizes["micro_bsz"], fill(sizes["micro_bsz"])
    fitting = [bsz for bsz in range(1, reference_bsz + 1) if pipeline <= fill(bsz) <= batch // (data_parallel * bsz)]
    # The largest batch; of two that reach it the larger micro batch, which is the nearer to the reference.
    micro_bsz = max(fitting, key=lambda bsz: (bsz * fill(bsz), bsz), default=1)
    return micro_bsz, fill(micro_bsz)


def _broken_rules(reference: Reference, model: Model, cards: int, settings: Settings) -> Iterator[Violation]:
    """Yield each rule that settings break; the rules on the batch need a whole data-parallel size."""
    tensor, pipeline = settings.tensor, settings.pipeline
    zero = [key for key in ("tensor", "pipeline", "micro_bsz", "micro_num") if getattr(settings, key) < 1]
    for key in zero:
        yield _not_positive(key, getattr(settings, key))
    if tensor >= 1:
        for rule, name, size in (
            ("tensor-heads", "attention heads", model.num_attention_heads),
            ("tensor-kv-heads", "KV heads", model.num_kv_attention_heads),
            ("tensor-vocabulary", "entries of the vocabulary", model.vocab_size),
            ("tensor-ffn", "columns of the feed-forward layer", model.ffn_size),
        ):
            if size % tensor:
                yield Violation(rule, f"tensor={tensor} does not divide the {size} {name}", _TENSOR)
    if pipeline >= 1:
        if model.num_layers % pipeline:
            yield Violation(
                "pipeline-layers", f"pipeline={pipeline} does not divide the {model.num_layers} layers", _PIPELINE
            )
        if 1 <= settings.micro_num < pipeline:
            yield Violation(
                "pipeline-micro-num",
                f"micro_num={settings.micro_num} is below pipeline={pipeline}, so that stages would always idle",
                _PIPELINE,
            )
    if tensor >= 1 and pipeline >= 1:
        if cards % (tensor * pipeline):
            yield Violation("cards", f"tensor={tensor} x pipeline={pipeline} does not divide {cards} cards", _CARDS)
        elif not zero:
            yield from _broken_batch_rules(reference, cards // (tensor * pipeline), settings)


def _broken_batch_rules(reference: Reference, data_parallel: int, settings: Settings) -> Iterator[Violation]:
    """Yield each rule on the data-parallel size that settings break."""
    if settings.zero1 > 1 and data_parallel % settings.zero1:
        yield Violation(
            "zero1",
            f"zero1={settings.zero1} is no part of the data-parallel size {data_parallel}; "
            "<= 0 takes all of it, 1 shards nothing, more must divide it",
            f"{README}, 并行策略, zero1",
        )
    batch = settings.micro_bsz * settings.micro_num * data_parallel
    if batch > reference.global_batch_size:
        yield Violation(
            "global-batch",
            f"the global batch size {settings.micro_bsz} x {settings.micro_num} x {data_parallel} = {batch} is above "
            f"the reference's {reference.global_batch_size}; it may shrink, never grow",
            f"{README}, batch size说明, note 3",
        )


_CARDS = f"{README}, 并行策略, note 1"
_TENSOR = "InternEvo internlm/model/modeling_llama.py: heads, vocabulary and feed-forward are split evenly"
_PIPELINE = "InternEvo internlm/core/scheduler/pipeline_scheduler.py: one forward, one backward over equal stages"


def _nearest(reference: Reference, model: Model, cards: int, sizes: Mapping[str, int]) -> tuple[str, ...]:
    """Find the legal settings nearest to those asked for, as command-line options."""
    wanted = {**dataclasses.asdict(reference), **sizes}
    found: dict[str, float] = {}
    for settings in _legal_settings(reference, model, cards, sizes):
        batch = settings.micro_bsz * settings.micro_num * (cards // (settings.tensor * settings.pipeline))
        # Distance in doublings; re-cutting the model weighs twice, a batch below the reference's once.
        distance = math.log2(reference.global_batch_size / batch)
        for key, weight in (("tensor", 2), ("pipeline", 2), ("zero1", 1), ("micro_bsz", 1), ("micro_num", 1)):
            if key != "micro_num" or key in sizes:  # it follows unless it was given
                distance += weight * abs(math.log2(max(1, getattr(settings, key)) / max(1, wanted[key])))
        found.setdefault(_options(reference, cards, settings, sizes), distance)
    return tuple(sorted(found, key=lambda options: (found[options], len(options), options))[:NEAREST])


def _legal_settings(reference: Reference, model: Model, cards: int, sizes: Mapping[str, int]) -> Iterator[Settings]:
    """Yield the legal settings that are worth comparing with those asked for."""
    zero1 = sizes.get("zero1", reference.zero1)
    for tensor in _divisors(math.gcd(cards, model.num_kv_attention_heads)):
        for pipeline in _divisors(math.gcd(cards // tensor, model.num_layers)):
            data_parallel = cards // (tensor * pipeline)
            if data_parallel > reference.global_batch_size:
                continue
            zero1s = [zero1] if zero1 <= 1 else _divisors(data_parallel)
            for micro_bsz in {max(1, sizes.get("micro_bsz", 1)), *range(1, reference.micro_bsz + 1)}:
                most = reference.global_batch_size // (data_parallel * micro_bsz)
                micro_nums = {most, min(max(sizes.get("micro_num", most), pipeline), most)}
                for choice in itertools.product(zero1s, micro_nums):
                    settings = Settings(tensor, pipeline, choice[0], micro_bsz, choice[1])
                    if not any(_broken_rules(reference, model, cards, settings)):
                        yield settings


def _options(reference: Reference, cards: int, settings: Settings, sizes: Mapping[str, int]) -> str:
    """Write settings as the fewest command-line options that give them, keeping the ones that were given."""
    given = [key for key in SIZES if key in sizes]
    others = [key for key in SIZES if key not in sizes]
    for count in range(len(others) + 1):
        for added in itertools.combinations(others, count):
            chosen = {key: getattr(settings, key) for key in SIZES if key in given or key in added}
            if _resolve(reference, cards, chosen) == settings:
                return " ".join(f"--set {key}={value}" for key, value in chosen.items())
    raise AssertionError("all sizes together resolve to themselves")


def _divisors(number: int) -> list[int]:
    return [divisor for divisor in range(1, number + 1) if number % divisor == 0]


def _disclosures(plan: Plan) -> Iterator[str]:
    """Yield each allowed departure of a plan from its reference."""
    reference = plan.workload.reference
    if plan.global_batch_size < reference.global_batch_size:
        yield (
            f"global batch size {plan.micro_bsz} x {plan.micro_num} x {plan.data_parallel} = {plan.global_batch_size}, "
            f"below the reference's {reference.global_batch_size}"
        )
    if plan.micro_bsz != reference.micro_bsz:
        yield f"micro_bsz {plan.micro_bsz} in place of {reference.micro_bsz}"
    for key in ("tensor", "pipeline"):
        if getattr(plan, key) != getattr(reference, key):
            yield f"{key}-parallel size {getattr(plan, key)} in place of {getattr(reference, key)}"
    if plan.zero1_size != plan.data_parallel:
        yield f"optimizer state sharded over {plan.zero1_size} of {plan.data_parallel} data-parallel ranks"
    if plan.checkpoint:
        yield "activation checkpointing on; the logged TFLOPS count the recomputation, TGS does not"
    if plan.model.num_layers != plan.workload.model.num_layers:
        yield f"{plan.model.num_layers} layers in place of {plan.workload.model.num_layers}"
    if plan.total_steps != plan.workload.total_steps:
        yield f"{plan.total_steps} steps in place of {plan.workload.total_steps}"
