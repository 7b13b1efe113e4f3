"""One test per row of docs/compatibility.md, on a tiny BERT with a teacher that has something to teach.

Run as a script, it is one of the processes of the test with two.
"""

import functools
import math
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import datasets
import pytest
import torch
from accelerate.parallelism_config import ParallelismConfig
from torch import nn
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    LlamaConfig,
    LlamaForCausalLM,
    PrinterCallback,
    Trainer,
    TrainerCallback,
)

from hf_distill import DistillationTrainer, DistillationTrainingArguments
from hf_distill.normalisation import Normalisation
from hf_distill.support import check_supported
from tests.processes import leave_together

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")

STEPS, CLASSES = 4, 3


def bert(seed: int = 0, dropout: float = 0.0) -> BertForSequenceClassification:
    """A tiny classifier with weights large enough that its answers differ between seeds."""
    torch.manual_seed(seed)
    config = BertConfig(
        vocab_size=40,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        num_labels=CLASSES,
        hidden_dropout_prob=dropout,
        attention_probs_dropout_prob=dropout,
    )
    model = BertForSequenceClassification(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return model


def examples(lengths: tuple[int, ...] = (8,)) -> list[dict]:
    generator = torch.Generator().manual_seed(3)
    rows = []
    for index in range(16):
        length = lengths[index % len(lengths)]
        ids = torch.randint(3, 40, (length,), generator=generator).tolist()
        rows.append({"input_ids": ids, "attention_mask": [1] * length, "labels": index % CLASSES})
    return rows


def pad(features: list[dict]) -> dict:
    length = max(len(feature["input_ids"]) for feature in features)
    batch = {
        key: torch.tensor([feature[key] + [0] * (length - len(feature[key])) for feature in features])
        for key in ("input_ids", "attention_mask")
    }
    return {**batch, "labels": torch.tensor([feature["labels"] for feature in features])}


class Gradients(TrainerCallback):
    """Keeps the gradient of every optimizer step."""

    def __init__(self):
        self.steps = []

    def on_pre_optimizer_step(self, args, state, control, model=None, **kwargs):
        self.steps.append(
            torch.cat([p.grad.flatten().clone() for p in model.parameters() if p.grad is not None])
        )


@pytest.fixture
def trainer(tmp_path):
    """Make a trainer: keywords of Trainer where it has them, else of the arguments."""
    return functools.partial(make_trainer, tmp_path)


def make_trainer(
    folder, student=None, teacher=None, data=None, trainer_class=DistillationTrainer, **settings
):
    own = {
        key: settings.pop(key)
        for key in ("callbacks", "compute_loss_func", "data_collator", "eval_dataset")
        if key in settings
    }
    defaults = {
        "output_dir": str(folder),
        "per_device_train_batch_size": 4,
        "max_steps": STEPS,
        "optim": "sgd",
        "learning_rate": 0.1,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "use_cpu": True,
        "disable_tqdm": True,
        "alpha": 0.5,
    }
    arguments = DistillationTrainingArguments(**{**defaults, **settings})
    if trainer_class is DistillationTrainer:
        own["teacher"] = teacher if teacher is not None else bert(1)
    made = trainer_class(
        student if student is not None else bert(),
        args=arguments,
        train_dataset=examples() if data is None else data,
        **own,
    )
    made.remove_callback(PrinterCallback)
    return made


def weights(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


def run(trainer) -> list[dict]:
    """Train, check what must hold under any setting, and return the logged losses."""
    before = weights(trainer.model)
    trainer.train()
    logs = [entry for entry in trainer.state.log_history if "loss" in entry]
    assert len(logs) == trainer.args.max_steps
    for entry in logs:
        parts = entry["loss/label"], entry["loss/forward_kl"]
        assert all(math.isfinite(part) and part > 0 for part in parts)
        assert entry["loss"] == pytest.approx(0.5 * sum(parts), rel=1e-3), "the parts are those of this step"
    assert any(not torch.equal(before[name], now) for name, now in weights(trainer.model).items())
    return [{key: value for key, value in entry.items() if "loss" in key} for entry in logs]


def assert_same(left: list[dict], right: list[dict], rel: float = 1e-5) -> None:
    assert len(left) == len(right)
    for one, other in zip(left, right, strict=True):
        assert one == pytest.approx(other, rel=rel)


# ---- refused by name ---------------------------------------------------------------------------


def test_data_parallel(trainer, monkeypatch):
    monkeypatch.setattr(DistillationTrainingArguments, "n_gpu", 2)
    with pytest.raises(ValueError, match=r"received 2 GPUs in one process \(DataParallel\).*num_processes 2"):
        trainer()


@pytest.mark.parametrize("kind", ["cp", "sp", "tp"])
def test_parallelism(trainer, monkeypatch, kind):
    expected = rf"parallelism: .* received {kind}_size=2"
    with pytest.raises(ValueError, match=expected):
        trainer(parallelism_config=ParallelismConfig(**{f"{kind}_size": 2}))
    monkeypatch.setenv("ACCELERATE_USE_PARALLELISM_CONFIG", "true")
    monkeypatch.setenv(f"PARALLELISM_CONFIG_{kind.upper()}_SIZE", "2")
    with pytest.raises(ValueError, match=expected):
        trainer()


def test_parallelism_of_a_sharded_model_or_deepspeed():
    with pytest.raises(ValueError, match="tp_size=4"):
        check_supported(SimpleNamespace(n_gpu=1), SimpleNamespace(tp_size=4))
    deepspeed = SimpleNamespace(config={"tensor_parallel": {"autotp_size": 2}})
    with pytest.raises(ValueError, match="tp_size=2"):
        check_supported(SimpleNamespace(n_gpu=1, hf_deepspeed_config=deepspeed))


def test_parallelism_that_shares_out_examples(trainer):
    assert_same(run(trainer(parallelism_config=ParallelismConfig(cp_size=1))), run(trainer()))


def test_liger_kernel(trainer):
    for config in (None, {"rope": True}, {"fused_linear_cross_entropy": True}):
        with pytest.raises(ValueError, match=r"use_liger_kernel: .* fused_linear_cross_entropy"):
            trainer(use_liger_kernel=True, liger_kernel_config=config)


def test_liger_kernel_that_overwrites_logits(trainer, monkeypatch):
    """Its cross-entropy leaves its gradient in the logits, which the objectives would take for logits."""
    for config in (
        {"fused_linear_cross_entropy": False},
        {"fused_linear_cross_entropy": False, "cross_entropy": True},
    ):
        with pytest.raises(
            ValueError, match=r"received cross_entropy, which writes .* 'cross_entropy': False"
        ):
            trainer(use_liger_kernel=True, liger_kernel_config=config)

    def liger_cross_entropy(*args, **kwargs):
        raise AssertionError("not asked")

    monkeypatch.setattr(liger_cross_entropy, "__module__", "liger_kernel.transformers.functional")
    monkeypatch.setattr(torch.nn.functional, "cross_entropy", liger_cross_entropy)
    with pytest.raises(ValueError, match=r"expected PyTorch's, received Liger's"):
        trainer()


def test_liger_kernel_that_returns_logits(trainer, monkeypatch):
    """The kernels need a GPU; here only that they are asked for, and that training goes on around them."""
    asked = []
    monkeypatch.setattr("transformers.trainer.apply_liger_kernel", lambda model, config: asked.append(config))
    config = {"fused_linear_cross_entropy": False, "cross_entropy": False}
    assert_same(run(trainer(use_liger_kernel=True, liger_kernel_config=config)), run(trainer()))
    assert asked == [config]


# ---- works -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["activation_checkpointing", "gradient_checkpointing"])
@pytest.mark.parametrize("reentrant", [False, True])
def test_gradient_checkpointing(trainer, name, reentrant):
    plain, checkpointed = Gradients(), Gradients()
    student = bert()
    expected = run(trainer(callbacks=[plain]))
    kwargs = {name: True, f"{name}_kwargs": {"use_reentrant": reentrant}}
    got = run(trainer(student, callbacks=[checkpointed], **kwargs))
    assert student.is_gradient_checkpointing
    assert_same(got, expected)
    for one, other in zip(plain.steps, checkpointed.steps, strict=True):
        assert (one - other).abs().max() <= 1e-6 * one.abs().max()


def test_torch_compile(trainer, tmp_path):
    compiled = trainer(torch_compile=True, torch_compile_backend="eager")
    assert_same(run(compiled), run(trainer()))
    assert type(compiled.model_wrapped).__name__ == "OptimizedModule"
    assert not any(type(module).__name__ == "OptimizedModule" for module in compiled.teacher.model.modules())
    assert math.isfinite(compiled.evaluate(examples())["eval_loss/forward_kl"])
    compiled.save_model(str(tmp_path / "saved"))
    loaded = BertForSequenceClassification.from_pretrained(tmp_path / "saved")
    assert weights(loaded).keys() == weights(bert()).keys()
    assert all(torch.equal(value, weights(compiled.model)[name]) for name, value in weights(loaded).items())


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="inductor compiles with g++ on CPU")
def test_torch_compile_with_inductor(trainer):
    compiled = trainer(torch_compile=True)
    assert_same(run(compiled), run(trainer()), rel=1e-4)
    assert type(compiled.model_wrapped).__name__ == "OptimizedModule"


def lora(seed: int = 5):
    peft = pytest.importorskip("peft")
    base = bert()
    torch.manual_seed(seed)
    config = peft.LoraConfig(task_type="SEQ_CLS", r=4, lora_dropout=0.1, target_modules=["query", "value"])
    return peft.get_peft_model(base, config)


def test_peft_student(trainer, tmp_path):
    student = lora()
    before = weights(student)
    adapted = trainer(student, learning_rate=1.0)
    run(adapted)
    changed = {name for name, value in weights(student).items() if not torch.equal(value, before[name])}
    trainable = {name for name, parameter in student.named_parameters() if parameter.requires_grad}
    assert changed == trainable
    assert all("lora_" in name or "modules_to_save" in name for name in changed)

    folder = tmp_path / "saved"
    adapted.save_model(str(folder))
    names = {path.name for path in folder.iterdir()}
    assert {"adapter_config.json", "adapter_model.safetensors"} <= names
    assert not any(name.startswith(("model", "pytorch_model")) for name in names), names

    import peft

    loaded = peft.PeftModel.from_pretrained(bert(), folder).eval()
    student.eval()
    batch = pad(examples())
    assert torch.equal(loaded(**batch).logits, student(**batch).logits)
    assert math.isfinite(adapted.evaluate(examples())["eval_agreement"])


def test_peft_student_resumes(trainer, tmp_path):
    whole, resumed = lora(), lora()
    run(trainer(whole, save_strategy="steps", save_steps=2))
    trainer(resumed).train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    for name, value in weights(whole).items():
        assert torch.equal(value, weights(resumed)[name]), name


@pytest.mark.parametrize("alpha", [0.0, 0.5])
def test_peft_student_with_label_smoothing(trainer, alpha):
    """The smoother, too, is asked through the adapter."""
    smoothed = trainer(lora(), alpha=alpha, label_smoothing_factor=0.1)
    smoothed.train()
    assert smoothed._normalisation is Normalisation.NORMALISED


def test_peft_prompt_tuning_stops(trainer):
    """Its virtual tokens add positions to the logits, which must not be compared with the teacher's."""
    peft = pytest.importorskip("peft")

    def llama(seed):
        torch.manual_seed(seed)
        sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
        return LlamaForCausalLM(LlamaConfig(vocab_size=40, **sizes))

    student = peft.get_peft_model(
        llama(0), peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3)
    )
    data = [{"input_ids": row["input_ids"], "labels": row["input_ids"]} for row in examples()]
    with pytest.raises((ValueError, IndexError)):
        trainer(student, llama(1), data=data).train()


def test_device_map_teacher(trainer, tmp_path):
    """A teacher whose layers Accelerate brings in from disk stays where it was put, and teaches the same."""
    expected = run(trainer(teacher=bert(1)))
    bert(1).save_pretrained(tmp_path / "teacher")
    parts = ("bert.embeddings", "bert.encoder.layer.0", "bert.encoder.layer.1", "bert.pooler", "classifier")
    device_map = {part: "disk" if part.endswith("layer.0") else "cpu" for part in parts}
    teacher = BertForSequenceClassification.from_pretrained(
        tmp_path / "teacher", device_map=device_map, offload_folder=str(tmp_path / "offloaded")
    )
    assert_same(run(trainer(teacher=teacher)), expected)
    offloaded = {name for name, parameter in teacher.named_parameters() if parameter.device.type == "meta"}
    assert offloaded
    assert all(".layer.0." in name for name in offloaded)


@pytest.mark.parametrize("mark", [{"is_quantized": True}, {"hf_device_map": {"": "cpu"}}])
def test_quantised_teacher_is_not_moved(trainer, mark):
    teacher = bert(1)
    for name, value in mark.items():
        setattr(teacher, name, value)

    def refuse(*args, **kwargs):
        raise AssertionError("moved or cast, which a quantised model refuses")

    teacher.to = teacher.cuda = teacher.half = teacher.float = refuse
    assert_same(run(trainer(teacher=teacher)), run(trainer(teacher=bert(1))))


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_quantised_teacher(trainer):
    """Integer weights that are no parameters, from torch's own dynamic quantisation."""
    quantise = getattr(pytest.importorskip("torch.ao.quantization"), "quantize_dynamic", None)
    if quantise is None:
        pytest.skip("this torch has no dynamic quantisation left")
    teacher = quantise(bert(1), {nn.Linear}, dtype=torch.qint8)
    assert "quantized" in type(teacher.classifier).__module__
    got, expected = run(trainer(teacher=teacher)), run(trainer())
    assert got[0]["loss/label"] == pytest.approx(expected[0]["loss/label"])
    assert got[0]["loss/forward_kl"] == pytest.approx(expected[0]["loss/forward_kl"], rel=0.1)
    assert got[0]["loss/forward_kl"] != expected[0]["loss/forward_kl"]


class Stream(torch.utils.data.IterableDataset):
    """A torch data set that can only be read in order."""

    def __iter__(self):
        return iter(examples())


class SizedStream(Stream):
    def __len__(self):
        return len(examples())


def hf_stream():
    rows = [{**row, "note": "dropped by the trainer"} for row in examples()]
    return datasets.IterableDataset.from_generator(functools.partial(iter, rows))


@pytest.mark.parametrize(
    "make",
    [
        Stream,
        hf_stream,
        SizedStream,
    ],
)
def test_iterable_data_sets(trainer, make):
    in_order = run(trainer(train_sampling_strategy="sequential"))
    streamed = trainer(data=make(), eval_dataset=make())
    assert_same(run(streamed), in_order)
    by_stream, by_list = streamed.evaluate(), streamed.evaluate(examples())
    keys = {key for key in by_list if "loss" in key or "agreement" in key}
    assert len(keys) == 4
    assert {key: by_stream[key] for key in keys} == pytest.approx({key: by_list[key] for key in keys})


def multi_label_stream():
    rows = [{**row, "labels": [1.0, 0.0, float(row["labels"])]} for row in examples()]
    return datasets.IterableDataset.from_generator(functools.partial(iter, rows))


def test_iterable_data_sets_with_float_labels(trainer):
    """Nothing can be read ahead, so problem_type must say what the labels are."""
    student, teacher = bert(), bert(1)
    with pytest.raises(ValueError, match="problem_type"):
        trainer(student, teacher, data=multi_label_stream()).train()
    student, teacher = bert(), bert(1)
    for model in (student, teacher):
        model.config.problem_type = "multi_label_classification"
    told = trainer(student, teacher, data=multi_label_stream())
    told.train()
    assert "loss/binary_kl" in told.state.log_history[0]


def out_of_memory_above(student, size: int, after: int = 0):
    """Let a student's training forward fail as CUDA does where the batch is larger than size."""
    forward, calls = student.forward, []

    @functools.wraps(forward)
    def limited(*args, **kwargs):
        if student.training:
            calls.append(kwargs["input_ids"].shape[0])
            if calls[-1] > size and len(calls) > after:
                raise RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return forward(*args, **kwargs)

    student.forward = limited
    return calls


@pytest.mark.parametrize("accumulation", [1, 2])
def test_auto_find_batch_size(trainer, accumulation):
    student = bert()
    calls = out_of_memory_above(student, 3)
    found = trainer(student, auto_find_batch_size=True, gradient_accumulation_steps=accumulation)
    got = run(found)
    assert calls[:2] == [4, 3]
    assert set(calls[1:]) <= {1, 3}
    assert found._train_batch_size == 3
    expected = trainer(per_device_train_batch_size=3, gradient_accumulation_steps=accumulation)
    assert_same(got, run(expected))
    assert all(torch.equal(value, weights(expected.model)[name]) for name, value in weights(student).items())


def test_auto_find_batch_size_after_some_steps(trainer):
    """Parts and counts of the failed try are gone: run() compares the parts with the loss at every step."""
    student = bert()
    calls = out_of_memory_above(student, 3, after=3)
    run(trainer(student, auto_find_batch_size=True, gradient_accumulation_steps=2))
    assert calls[:5] == [4, 4, 4, 4, 3]


def test_bf16(trainer):
    dtypes = {"student": set(), "teacher": set()}
    student, teacher = bert(), bert(1)
    for name, model in (("student", student), ("teacher", teacher)):
        model.classifier.register_forward_hook(lambda m, i, out, name=name: dtypes[name].add(out.dtype))
    got, expected = run(trainer(student, teacher, bf16=True)), run(trainer())
    assert dtypes == {"student": {torch.bfloat16}, "teacher": {torch.bfloat16}}
    assert {parameter.dtype for parameter in student.parameters()} == {torch.float32}
    assert_same(got[:1], expected[:1], rel=2e-2)
    assert_same(got, expected, rel=5e-2)
    assert got != expected


@pytest.mark.parametrize("who", ["student", "teacher"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_weights(trainer, who, dtype):
    """Weights in half precision, without autocast."""
    models = {"student": bert(), "teacher": bert(1)}
    models[who].to(dtype)
    assert_same(run(trainer(**models)), run(trainer()), rel=5e-2)


def test_fp16_on_cpu_is_float32(trainer):
    """Accelerate leaves fp16 out on CPU, without a word."""
    half = trainer(fp16=True)
    assert not half.accelerator.native_amp
    assert_same(run(half), run(trainer()), rel=0)


def test_neftune(trainer):
    student, teacher = bert(), bert(1)
    seen = {"student": [], "teacher": []}
    for name, model in (("student", student), ("teacher", teacher)):
        # A hook at the layer after the embeddings' own, which NEFTune replaces.
        model.bert.embeddings.LayerNorm.register_forward_hook(
            lambda m, i, out, name=name: seen[name].append(out.detach().clone())
        )
    noisy = trainer(student, teacher, neftune_noise_alpha=5.0, train_sampling_strategy="sequential")
    got, expected = run(noisy), run(trainer(train_sampling_strategy="sequential"))
    assert got[0]["loss/label"] != expected[0]["loss/label"]
    with torch.no_grad():
        clean = bert(1).bert.embeddings(pad(examples()[:4])["input_ids"])
        assert torch.equal(seen["teacher"][0], clean), "no noise for the teacher"
        assert not torch.allclose(
            seen["student"][-STEPS], bert().bert.embeddings(pad(examples()[:4])["input_ids"])
        )
    assert noisy._normalisation is Normalisation.MEAN
    assert not student.get_input_embeddings()._forward_hooks, "the noise ends with training"


@pytest.mark.parametrize("strategy", ["group_by_length", "batch_rebalance", "sequential"])
def test_group_by_length(trainer, strategy):
    lengths = []

    def collate(features):
        lengths.append([len(feature["input_ids"]) for feature in features])
        return pad(features)

    data = examples(lengths=(4, 8)) * 4  # groups are made within some batches of chance neighbours
    grouped = trainer(data=data, data_collator=collate, train_sampling_strategy=strategy)
    run(grouped)
    if strategy == "group_by_length":
        assert sum(len(set(batch)) > 1 for batch in lengths) <= 1, lengths
    assert sum(len(batch) for batch in lengths) >= 16


def test_average_tokens_across_devices_false(trainer):
    """In one process nothing changes, for a mean loss and for one that takes the count."""
    for smoothing in (0.0, 0.1):
        common = {"gradient_accumulation_steps": 2, "max_steps": 2, "label_smoothing_factor": smoothing}
        off = run(trainer(average_tokens_across_devices=False, **common))
        assert_same(off, run(trainer(**common)))


# ---- two processes -----------------------------------------------------------------------------

RAGGED = [
    {**row, "labels": row["labels"] if index in (0, 2, 4, 5, 9) else -100}
    for index, row in enumerate(examples())
]
PROCESS_CASES = {
    "mean": {"label_smoothing_factor": 0.0},
    "normalised": {"label_smoothing_factor": 0.1},
}


def ragged_gradient(folder, batch_size: int, **settings) -> torch.Tensor:
    keeper = Gradients()
    common = {"max_steps": 1, "max_grad_norm": 0.0, "data": RAGGED, "callbacks": [keeper]}
    made = make_trainer(folder, per_device_train_batch_size=batch_size, **common, **settings)
    made.train()
    return keeper.steps[0]


@pytest.mark.slow
def test_average_tokens_across_devices_false_on_two_processes(tmp_path, repository):
    """A mean loss, and the teacher's term, are over all processes; a loss that takes the count is as with Trainer."""
    command = [
        *(sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"),
        *(__file__, str(tmp_path)),
    ]
    environment = {**os.environ, "PYTHONPATH": str(repository), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    found = torch.load(tmp_path / "gradients.pt")
    for alpha in (0.0, 0.5, 1.0):
        whole = ragged_gradient(tmp_path, 16, alpha=alpha)
        assert (found[f"mean/{alpha}"] - whole).abs().max() <= 1e-6 * whole.abs().max()
    smoothed = found["normalised/0.0"]
    assert (smoothed - found["normalised/Trainer"]).abs().max() <= 1e-6 * smoothed.abs().max()
    blended = 0.5 * smoothed + 0.5 * found["normalised/1.0"]
    assert (found["normalised/0.5"] - blended).abs().max() <= 1e-6 * blended.abs().max()


def work(folder: Path) -> None:
    """Be one of two processes: half of the examples in one step."""
    found = {}
    for name, settings in PROCESS_CASES.items():
        settings = {**settings, "average_tokens_across_devices": False}
        for alpha in (0.0, 0.5, 1.0):
            found[f"{name}/{alpha}"] = ragged_gradient(folder, 8, alpha=alpha, **settings)
        found[f"{name}/Trainer"] = ragged_gradient(folder, 8, trainer_class=Trainer, **settings)
    if int(os.environ["RANK"]) == 0:
        torch.save(found, folder / "gradients.pt")
    leave_together()


# ---- the table ---------------------------------------------------------------------------------


def table_rows(page: str) -> list[list[str]]:
    lines = [line for line in page.splitlines() if line.startswith("| ")]
    cells = [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines]
    return [row for row in cells if row[0] != "Feature" and not set(row[0]) <= {"-"}]


def test_every_row_names_its_tests(repository):
    page = (repository / "docs" / "compatibility.md").read_text(encoding="utf-8")
    rows = table_rows(page.split("\n## Heads")[0])
    tests = {name for name in globals() if name.startswith("test_")} - {"test_every_row_names_its_tests"}
    named = [set(re.findall(r"test_\w+", row[-1])) for row in rows]
    assert len(rows) >= 14
    for row, names in zip(rows, named, strict=True):
        assert len(row) == 4, row
        assert row[1].split()[0] in ("works", "refused", "GPU", "partly"), row
        assert names, f"{row[0]} names no test"
        assert names <= tests, f"{row[0]} names tests that are not there: {names - tests}"
    assert set().union(*named) == tests, "tests that no row names"


if __name__ == "__main__":
    work(Path(sys.argv[1]))
