"""Mistakes that operators make, each made for real, with what `omni doctor` must say and what cures it."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

from cli.doctor_harness import Machine, make_command, make_model, mounting, without_rights
from omni_core.cli.checks import cores, devices, memory

WEIGHTS = "unet/diffusion_pytorch_model.safetensors"


@dataclass(frozen=True)
class Mistake:
    """How it is made, what is said of it, and how it is cured: by the first command of the cure, if not given."""

    make: Callable[[Machine], object]
    check: str
    state: str
    says: str
    cure: str
    mend: Callable[[Machine], object] | None = None


def in_folder(damage):
    """A model in the folder `model`, damaged."""

    def make(machine):
        machine.export(OMNI_MODEL=make_model(machine.folder / "model"))
        damage(machine.folder / "model")

    return make


def whole_again(machine):
    shutil.rmtree(machine.folder / "model")
    make_model(machine.folder / "model")


def variables(**values):
    return lambda machine: machine.export(**values)


def toml(text):
    return lambda machine: (machine.folder / "omni.toml").write_text(text)


def flags(*words):
    return lambda machine: machine.flags.extend(words)


def remove_toml(machine):
    (machine.folder / "omni.toml").unlink()


def lose_index(folder):
    inner = folder / "snapshots" / "4d7a"
    inner.mkdir(parents=True)
    for name in ("model_index.json", "unet"):
        (folder / name).rename(inner / name)


def lose_shard(folder):
    index = {"weight_map": {"x": "diffusion_pytorch_model-00002-of-00002.safetensors"}}
    (folder / "unet" / "diffusion_pytorch_model.safetensors.index.json").write_text(json.dumps(index))


def write_pointer(folder):
    (folder / WEIGHTS).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12\n")


def cut_off(folder):
    (folder / WEIGHTS).write_bytes((folder / WEIGHTS).read_bytes()[:-3])


def make_huge(folder):
    # 2 ** 41 numbers in a file with a hole: it takes no room on the disk, and no machine could hold it.
    header = json.dumps({"x": {"dtype": "F32", "shape": [2**41], "data_offsets": [0, 2**43]}}).encode()
    with (folder / WEIGHTS).open("wb") as file:
        file.write(len(header).to_bytes(8, "little") + header)
        file.truncate(8 + len(header) + 2**43)


def misspell_folder(machine):
    make_model(machine.folder / "model")
    machine.export(OMNI_MODEL=machine.folder / "modell")


def unpack_pickles(machine):
    from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel

    kinds = {"down_block_types": ("DownBlock2D",), "up_block_types": ("UpBlock2D",)}
    unet = UNet2DModel(sample_size=8, block_out_channels=(8,), norm_num_groups=2, layers_per_block=1, **kinds)
    folder = machine.folder / "model"
    DDPMPipeline(unet, DDPMScheduler()).save_pretrained(folder, safe_serialization=False)
    machine.export(OMNI_MODEL=folder)


def own_code(folder):
    index = json.loads((folder / "model_index.json").read_text())
    (folder / "model_index.json").write_text(json.dumps({**index, "_class_name": ["pipeline", "OwnPipeline"]}))


def tomorrow(folder):
    index = json.loads((folder / "model_index.json").read_text())
    (folder / "model_index.json").write_text(json.dumps({**index, "_class_name": "TomorrowPipeline"}))


def hide_package(machine):
    (machine.folder / "hiding").mkdir()
    (machine.folder / "hiding" / "safetensors.py").write_text("raise RuntimeError('not the package you want')\n")
    machine.export(PYTHONPATH=f"{machine.folder / 'hiding'}{os.pathsep}{os.environ['PYTHONPATH']}")
    machine.new_process = True


def forbid_folder(machine):
    machine.shell, machine.new_process = without_rights(), True
    machine.export(OMNI_MODEL=make_model(machine.folder / "model"))
    (machine.folder / "model" / "unet").chmod(0o000)


def forget_module(machine):
    (machine.folder / "acme_models").mkdir()
    (machine.folder / "acme_models" / "acme_pipelines.py").write_text("def make():\n    return print\n")
    machine.export(OMNI_MODEL="acme_pipelines:make")


def fill_temporary_folder(machine):
    place = machine.folder / "small"
    place.mkdir()
    machine.shell = mounting(place, "1m")
    machine.export(TMPDIR=place)


def share_little_memory(machine):
    machine.shell = mounting("/dev/shm", "64m")


def back_to_plain_shell(machine):
    machine.shell = ""


def few_files(machine):
    machine.shell = "ulimit -Sn 300;"


def container(machine):
    (machine.folder / "memory.max").write_text(f"{40 * 2**20}\n")
    (machine.folder / "cpu.max").write_text("800000 100000\n")
    machine.patch.setattr(cores, "CGROUP", machine.folder)
    machine.patch.setattr(memory, "CGROUP", machine.folder)
    machine.patch.setattr(cores.os, "sched_getaffinity", lambda pid: set(range(8)), raising=False)
    machine.flags = ["--executor-class", "cli.doctor_harness:Replicas"]
    # 4 million numbers, 16 MiB: two fit, three do not.
    save_file({"x": np.zeros(2**22, np.float16)}, make_model(machine.folder / "model") / WEIGHTS)
    machine.export(OMNI_MODEL=machine.folder / "model", OMNI_DATA_PARALLEL_SIZE=3)


def half_a_container(machine):
    """16 MiB of weights, of which half would fit, and a processor that computes with 16 bits itself."""
    (machine.folder / "memory.max").write_text(f"{12 * 2**20}\n")
    (machine.folder / "cpuinfo").write_text("flags\t\t: fpu avx512_bf16\n")
    machine.patch.setattr(memory, "CGROUP", machine.folder)
    machine.patch.setattr(devices, "_CPU_INFO", machine.folder / "cpuinfo")
    save_file({"x": np.zeros(2**22, np.float16)}, make_model(machine.folder / "model") / WEIGHTS)
    machine.export(OMNI_MODEL=machine.folder / "model", OMNI_DEVICE="cpu")


def old_processor(machine):
    (machine.folder / "cpuinfo").write_text("flags\t\t: fpu sse sse2 avx avx2\n")
    machine.patch.setattr(devices, "_CPU_INFO", machine.folder / "cpuinfo")
    machine.export(OMNI_DTYPE="bfloat16", OMNI_DEVICE="cpu")


def many_replicas(machine):
    machine.flags = ["--executor-class", "cli.doctor_harness:Replicas", "--data-parallel-size", "600"]
    machine.flags += ["--device", "cpu"]


def buy_gpu(machine):
    import torch

    machine.patch.setattr(torch.version, "cuda", None)
    machine.patch.setattr(torch.cuda, "is_available", lambda: False)
    machine.export(PATH=make_command(machine.folder / "bin", "nvidia-smi", "| CUDA Version: 13.0 |\n"))


def sell_gpu(machine):
    (machine.folder / "bin" / "nvidia-smi").write_text("#!/bin/sh\nexit 9\n")


MISTAKES = {
    "variable misspelled": Mistake(
        variables(OMNI_MAX_NUM_SEQ="4"),
        "config",
        "problem",
        "Did you mean OMNI_MAX_NUM_SEQS",
        "`unset OMNI_MAX_NUM_SEQ`",
    ),
    "variable of nobody": Mistake(
        variables(OMNI_XYZZY="1"), "environment", "warning", "means nothing to omni", "`unset OMNI_XYZZY`"
    ),
    "value impossible": Mistake(
        variables(OMNI_MAX_NUM_SEQS="0"), "config", "problem", "max_num_seqs = '0'", "`unset OMNI_MAX_NUM_SEQS`"
    ),
    "omni.toml is no TOML": Mistake(
        toml("model = \n"), "config", "problem", "omni.toml cannot be read", "Correct omni.toml", remove_toml
    ),
    "omni.toml with a wrong value": Mistake(
        toml('dtype = "float8"\n'), "config", "problem", "dtype", "Correct dtype in omni.toml"
    ),
    "field misspelled": Mistake(
        toml('modle = "."\nmax_num_seqs = 3\n'),
        "config",
        "problem",
        "there is no field 'modle'",
        "^Rename modle to model in omni.toml",
        toml("max_num_seqs = 3\n"),
    ),
    "field misspelled that is renamed": Mistake(
        toml("max_num_seq = 3\n"),
        "config",
        "problem",
        "'max_num_seq'",
        "^Rename max_num_seq to max_num_seqs in omni.toml",
    ),
    "field of nobody": Mistake(
        toml('xyzzy = "model"\nmax_num_seqs = 3\n'),
        "config",
        "problem",
        "there is no field 'xyzzy'",
        "^Remove xyzzy from omni.toml",
    ),
    "fields in a table": Mistake(
        toml("[omni]\nmax_num_seqs = 3\n"),
        "config",
        "problem",
        "there is no field 'omni'",
        r"^Remove the line \[omni\] from omni.toml",
    ),
    "field of nobody in another file": Mistake(
        lambda machine: ((machine.folder / "my.toml").write_text("xyzzy = 1\n"), flags("--config", "my.toml")(machine)),
        "config",
        "problem",
        "'xyzzy'",
        "^Remove xyzzy from my.toml",
    ),
    "file not there": Mistake(
        flags("--config", "none.toml"),
        "config",
        "problem",
        "no configuration file at none.toml",
        "Name a file that is there with --config, or leave it out",
        lambda machine: machine.flags.clear(),
    ),
    "value impossible in a flag": Mistake(
        flags("--max-num-seqs", "0"), "config", "problem", "max_num_seqs = 0", "^Correct the flag --max-num-seqs"
    ),
    "variable in small letters": Mistake(
        variables(omni_max_num_seqs="0"), "config", "problem", "max_num_seqs", "`unset omni_max_num_seqs`"
    ),
    "part of a value in a variable": Mistake(
        variables(OMNI_EXECUTOR_OPTIONS__SPEED="9"),
        "executor",
        "problem",
        "takes no options",
        "`unset OMNI_EXECUTOR_OPTIONS__SPEED`",
    ),
    "variable that is no JSON": Mistake(
        variables(OMNI_MODEL_OPTIONS="{x"), "config", "problem", "model_options", "`unset OMNI_MODEL_OPTIONS`"
    ),
    "executor misspelled": Mistake(
        variables(OMNI_EXECUTOR_CLASS="inlin"),
        "executor",
        "problem",
        "There is no executor 'inlin'",
        "`export OMNI_EXECUTOR_CLASS=inline`",
    ),
    "executor left out": Mistake(
        variables(OMNI_PLUGINS_DISABLE="inline"),
        "executor",
        "problem",
        "OMNI_PLUGINS_DISABLE leaves out",
        "`unset OMNI_PLUGINS_DISABLE`",
    ),
    "option not honoured": Mistake(
        variables(OMNI_STEP_TIMEOUT_S="9"),
        "executor",
        "problem",
        "does not support step_timeout_s",
        "`unset OMNI_STEP_TIMEOUT_S`",
    ),
    "options for an executor without": Mistake(
        variables(OMNI_EXECUTOR_OPTIONS='{"speed": 9}'),
        "executor",
        "problem",
        "takes no options",
        "`unset OMNI_EXECUTOR_OPTIONS`",
    ),
    "device not there": Mistake(
        variables(OMNI_DEVICE="cuda:99"), "device", "problem", "cuda:99 cannot be used", "`export OMNI_DEVICE=auto`"
    ),
    "offload to nothing": Mistake(
        variables(OMNI_OFFLOAD="model", OMNI_DEVICE="cpu"), "offload", "problem", "CPU", "`export OMNI_OFFLOAD=none`"
    ),
    "16 bits on an old processor": Mistake(
        old_processor, "dtype", "warning", "many times slower", "`export OMNI_DTYPE=float32`"
    ),
    "torch for CPU beside a GPU": Mistake(
        buy_gpu, "cuda", "warning", "torch is built for CPU", "`pip install --force-reinstall --index-url", sell_gpu
    ),
    "threads beyond the cores": Mistake(
        variables(OMP_NUM_THREADS="9999"), "cpu", "warning", "OMP_NUM_THREADS=9999", "`export OMP_NUM_THREADS="
    ),
    "num_threads beyond the cores": Mistake(
        variables(OMNI_NUM_THREADS="9999"), "cpu", "warning", "num_threads = 9999", "`export OMNI_NUM_THREADS="
    ),
    "workers beyond the cores": Mistake(
        many_replicas, "cpu", "warning", "in 600 workers", "data_parallel_size", lambda machine: machine.flags.clear()
    ),
    "replicas beyond the container's memory": Mistake(
        container, "memory", "problem", "this container may use 40.0 MiB", "`export OMNI_DATA_PARALLEL_SIZE=2`"
    ),
    "weights beyond the memory": Mistake(
        in_folder(make_huge), "memory", "problem", "8192.00 GiB of weights", "^A smaller model[^`]*$", whole_again
    ),
    "weights of which half fits": Mistake(
        half_a_container,
        "memory",
        "problem",
        "this container may use 12.0 MiB",
        "^`export OMNI_DTYPE=bfloat16` takes half",
    ),
    "model misspelled": Mistake(misspell_folder, "model", "problem", "there is no folder", "`export OMNI_MODEL="),
    "folder of a hub's cache": Mistake(
        in_folder(lose_index), "model", "problem", "no model_index.json", "`export OMNI_MODEL=.*snapshots/4d7a`"
    ),
    "index broken": Mistake(
        in_folder(lambda folder: (folder / "model_index.json").write_text("{")),
        "model",
        "problem",
        "cannot be read",
        "save_pretrained",
        whole_again,
    ),
    "component missing": Mistake(
        in_folder(lambda folder: shutil.rmtree(folder / "unet")),
        "model",
        "problem",
        "the folder unet is missing",
        "download the model again",
        whole_again,
    ),
    "shard missing": Mistake(
        in_folder(lose_shard), "model", "problem", "lacks diffusion_pytorch_model-00002", "Get all", whole_again
    ),
    "Git LFS pointer": Mistake(
        in_folder(write_pointer), "model", "problem", "is a Git LFS pointer", "`git -C .* lfs pull`", whole_again
    ),
    "weights cut off": Mistake(
        in_folder(cut_off), "model", "problem", "is not whole", "download the model again", whole_again
    ),
    "weights without safety": Mistake(
        unpack_pickles, "model", "problem", "no .safetensors", "convert them, `python -c .*`export OMNI_MODEL="
    ),
    "code that is not trusted": Mistake(
        in_folder(own_code), "model", "problem", "trust_remote_code", "`export OMNI_TRUST_REMOTE_CODE=true`"
    ),
    "class of a newer diffusers": Mistake(
        in_folder(tomorrow),
        "model",
        "problem",
        "has no class TomorrowPipeline",
        "`pip install --upgrade diffusers`",
        whole_again,
    ),
    "module not found": Mistake(
        forget_module,
        "model",
        "problem",
        "No module named 'acme_pipelines'",
        "`export PYTHONPATH=FOLDER`",
        lambda machine: machine.patch.syspath_prepend(str(machine.folder / "acme_models")),
    ),
    "no shared memory": Mistake(
        lambda machine: machine.patch.setattr(memory, "SHARED_MEMORY", machine.folder / "shm"),
        str(Path("shm")),
        "warning",
        "missing",
        "`mkdir -p .* && mount -t tmpfs",
        lambda machine: (machine.folder / "shm").mkdir(),
    ),
    # Those that follow run in a process of their own: what is set there is read once.
    "little shared memory": Mistake(
        share_little_memory, "/dev/shm", "warning", "0.06 GiB", "`docker run --shm-size=2g`", back_to_plain_shell
    ),
    "full disk": Mistake(
        fill_temporary_folder,
        "temporary files",
        "warning",
        "0.00 GiB free",
        "`export TMPDIR=FOLDER`",
        back_to_plain_shell,
    ),
    "few open files": Mistake(
        few_files,
        "open files",
        "warning",
        "at most 300",
        "`ulimit -n 4096`",
        lambda machine: setattr(machine, "shell", f"{machine.shell} ulimit -Sn 4096;"),
    ),
    "folder forbidden": Mistake(
        forbid_folder, "model", "problem", "unet cannot be read: Permission denied", "`chmod -R a\\+rX "
    ),
    "package hidden": Mistake(
        hide_package,
        "safetensors",
        "problem",
        "not the package you want",
        "Rename .*safetensors.py",
        lambda machine: (machine.folder / "hiding" / "safetensors.py").rename(machine.folder / "hiding" / "other.py"),
    ),
}


def matches(mistake, finding):
    """Whether a finding is the one that a mistake must give."""
    return (
        finding["check"].endswith(mistake.check)
        and finding["state"] == mistake.state
        and mistake.says in finding["detail"]
        and re.search(mistake.cure, finding["cure"]) is not None
    )
