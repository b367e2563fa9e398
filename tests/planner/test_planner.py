"""`ggufd plan`: what is printed, for a person, a program and a model card."""

from __future__ import annotations

import json
import re
import shlex
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from ggufd import cli
from ggufd.llama.model import system
from ggufd.llama.model.system import DeviceMemory
from ggufd.models import hub
from ggufd.placement.kept_plan import KeptUse
from ggufd.placement.offload import Device, Machine
from ggufd.planner import report, table
from ggufd.planner.report import ModelPlan
from ggufd.settings import engine_settings, model_files, sources
from tests.support.models.gguf_files import llama, write
from tests.support.models.lora_files import write_lora
from tests.support.models.projector_file import write_sparse
from tests.support.models.tiny_bert import write_tiny_bert

GIB = 1 << 30


@pytest.fixture(autouse=True)
def _no_settings_from_outside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("platformdirs.user_config_path", lambda name: tmp_path / "user" / name)
    monkeypatch.setenv("COLUMNS", "200")


def run(*arguments: str) -> None:
    cli.main(["plan", *arguments])


def printed(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    with pytest.raises(SystemExit) as caught:
        run(*arguments)
    out, err = capsys.readouterr()
    assert (caught.value.code or 0, err) == (0, "")
    return out


def planned(path: Path, machine: Machine, **flags: Any) -> ModelPlan:
    config = sources.load(None, {key: str(value) for key, value in flags.items()}, {})
    return report.make(hub.find(str(path)), config, engine_settings.context_params(config), machine)


def shown(one: ModelPlan) -> str:
    console = Console(width=160)
    with console.capture() as capture:
        table.show(one, console)
    return capture.get()


@pytest.fixture
def model(tmp_path: Path) -> Path:
    sizes = {"n_layers": 30, "width": 2048, "n_heads": 16, "n_kv_heads": 4, "n_ff": 8192, "n_vocab": 32000}
    metadata, tensors = llama(**sizes, n_ctx=16384, n_experts=4, kind="q8_0", extra={"general.file_type": 7})
    return write(tmp_path / "models" / "four.gguf", metadata, tensors)


GPU = Machine(32 * GIB, 32 * GIB, (Device("A fine GPU", 6 * GIB, 6 * GIB),))


class TestTable:
    def test_facts(self, model: Path) -> None:
        text = shown(planned(model, GPU))
        assert "four.gguf" in text
        assert "llama, 6.49B parameters, 3.47B active per token (2 of 4 experts used), 30 layers" in text
        assert "Q8_0 (Q8_0 100%), 8.50 bits per weight" in text
        assert "trained for 16,384 tokens" in text
        assert "32.00 GiB of 32.00 GiB RAM free; A fine GPU with 6.00 GiB free" in text

    def test_the_best_is_said_and_can_be_pasted(self, model: Path) -> None:
        one = planned(model, GPU)
        text = shown(one)
        assert "Best here: 4 slots of 8,192 tokens, 31 of 31 layers on the GPU (the experts of" in text
        assert f"ggufd -m {model} -ngl 31 -ncmoe {one.choice.placement.n_cpu_moe} " in text
        assert "-c 32768 -np 4" in text

    def test_no_room_for_chats_without_a_slot_is_none(self, model: Path) -> None:
        one = planned(model, GPU, cache_ram=0)
        assert one.host_cache == 0
        assert re.search(r"Chats evicted from slots, up to +0 +--cache-ram", shown(one))

    @pytest.mark.parametrize("width", [60, 80])
    def test_no_number_is_broken_on_a_narrow_terminal(self, model: Path, width: int) -> None:
        console = Console(width=width)
        with console.capture() as capture:
            table.show(planned(model, GPU), console)
        lines = capture.get().splitlines()
        start = next(i for i, line in enumerate(lines) if line.startswith("Layers on the GPU"))
        rows = [line.split() for line in lines[start + 2 :] if line.strip()[:1].isdigit() and "iB" in line]
        assert len(rows) > 5
        assert all(row[-1] in ("MiB", "GiB", "KiB") for row in rows)
        # The command is for pasting, so it stays in one piece.
        assert max(len(line) for line in lines if "ggufd -m" not in line) <= width

    def test_layers_are_sampled_where_they_are_many(self, model: Path) -> None:
        rows = [line.split()[0] for line in shown(planned(model, GPU)).splitlines() if line.count("GiB") >= 2]
        numbers = [int(cell) for cell in rows if cell.isdigit()]
        assert numbers[-1] == 31
        assert len(numbers) <= 12

    def test_what_does_not_fit(self, model: Path) -> None:
        assert "Does not fit: it needs" in shown(planned(model, Machine(4 * GIB, 4 * GIB)))

    def test_layers_for_a_gpu_that_is_not_there(self, model: Path) -> None:
        text = shown(planned(model, replace(GPU, devices=()), n_gpu_layers=5))
        assert "llama.cpp sees none here" in text

    def test_what_is_loaded_beside_is_counted(self, tmp_path: Path) -> None:
        path = write(tmp_path / "m.gguf", *llama())
        lora = write_lora(tmp_path / "lora.gguf", {"blk.0.attn_q.weight": ((999, 64), (64, 999))})
        plain, more = (
            planned(path, GPU, **flags)
            for flags in ({}, {"lora": lora, "embeddings": True, "cache_ram": 7, "parallel": 2})
        )
        assert "Adapters" not in shown(plain)
        assert re.search(r"Chats evicted from slots, up to +1.00 GiB +depends on free RAM", shown(plain))
        text = shown(more)
        assert re.search(r"Adapters +500 KiB", text)
        assert "Context for embeddings" in text
        assert re.search(r"Chats evicted from slots, up to +7 MiB +--cache-ram", text)
        assert more.choice.estimate.needed > plain.choice.estimate.own

    def test_a_model_that_only_embeds_has_no_slots(self, tmp_path: Path) -> None:
        one = planned(write_tiny_bert(tmp_path / "bert.gguf"), GPU)
        text = shown(one)
        assert "Best here: embeddings of inputs of up to 128 tokens" in text
        assert text.splitlines()[-1].endswith("-ngl 3 -c 128")
        assert "slot" not in text
        assert one.in_ram.ram.cache == one.in_ram.host_cache == 0


class TestPlacing:
    """Settings that say where the model goes, obeyed as `serve` obeys them. The GPUs are made up."""

    @pytest.fixture(autouse=True)
    def _two_gpus(self, monkeypatch: pytest.MonkeyPatch) -> None:
        gpus = [DeviceMemory(f"CUDA{i}", f"GPU {i}", n * GIB, n * GIB, shares_ram=False) for i, n in enumerate((16, 3))]
        monkeypatch.setattr(system, "device_memory", lambda: tuple(gpus))
        monkeypatch.setattr(system, "buffer_types", lambda: {"CPU": 1, "CUDA0": 2, "CUDA1": 3})

    def best(self, capsys: pytest.CaptureFixture[str], model: Path, *flags: str) -> dict[str, Any]:
        return dict(json.loads(printed(capsys, str(model), "--json", "-c", "4096", *flags))["best"])

    @pytest.mark.parametrize(
        "flags",
        [
            (),
            ("-ot", "ffn_(gate|up)_exps=CPU", "-fa", "on", "-ctk", "q8_0"),
            ("-sm", "none", "-mg", "1"),
            ("-ts", "9,1", "--cache-ram", "0", "--no-mmap", "--no-kv-offload", "-np", "2"),
        ],
        ids=str,
    )
    def test_the_command_pasted_comes_to_the_same(
        self, model: Path, capsys: pytest.CaptureFixture[str], flags: tuple[str, ...]
    ) -> None:
        """Also with what was given, and with the experts that stay in RAM."""
        planned = json.loads(printed(capsys, str(model), "--json", *flags))["best"]
        words = shlex.split(printed(capsys, str(model), *flags).splitlines()[-1])
        assert words[:3] == ["ggufd", "-m", str(model)]
        pasted = json.loads(printed(capsys, str(model), "--json", *words[3:]))["best"]
        assert pasted["fits"]
        assert pasted | {"why": ""} == planned | {"why": ""}

    def test_one_gpu_of_two(self, model: Path, capsys: pytest.CaptureFixture[str]) -> None:
        large, small = (self.best(capsys, model, "-sm", "none", "-mg", n) for n in "01")
        assert (large["n_gpu_layers"], large["n_cpu_moe"]) == (31, 0)
        assert small["n_cpu_moe"]
        text = printed(capsys, str(model), "-c", "4096", "-sm", "none", "-mg", "1")
        assert f"-ngl 31 -ncmoe {small['n_cpu_moe']} " in text
        assert "--split-mode none --main-gpu 1" in text

    def test_shares(self, model: Path, capsys: pytest.CaptureFixture[str]) -> None:
        assert self.best(capsys, model, "-ts", "9,1")["n_cpu_moe"] == 0
        assert self.best(capsys, model, "-ts", "1,1")["n_cpu_moe"]
        assert "--tensor-split 9,1\n" in printed(capsys, str(model), "-ts", "9,1")

    def test_tensors_by_pattern(self, model: Path, capsys: pytest.CaptureFixture[str]) -> None:
        flags = ("-sm", "none", "-mg", "1")
        best = self.best(capsys, model, *flags, "-ot", "exps=CPU")
        assert (best["n_gpu_layers"], best["n_cpu_moe"]) == (31, 0)
        assert best["why"] == "the whole model fits on the GPU, apart from --override-tensor"
        assert self.best(capsys, model, *flags, "-ot", "exps=CUDA1")["n_gpu_layers"] < 31
        assert "--override-tensor exps=CPU " in printed(capsys, str(model), "-c", "4096", *flags, "-ot", "exps=CPU")

    @pytest.mark.parametrize(
        ("flags", "words"),
        [
            (("-sm", "none", "-mg", "2"), "--main-gpu 2: there are 2 GPUs"),
            (("-ts", "1,1,1"), "--tensor-split names 3 shares, but there are 2 GPUs"),
            (("-ot", "exps=CUDA7"), "this build has no such buffer"),
        ],
    )
    def test_what_serve_would_refuse_is_refused_in_its_words(
        self, model: Path, capsys: pytest.CaptureFixture[str], flags: tuple[str, ...], words: str
    ) -> None:
        with pytest.raises(SystemExit) as caught:
            run(str(model), *flags)
        assert caught.value.code == 1
        assert words in capsys.readouterr().err


class TestCommand:
    def test_a_file(self, model: Path, capsys: pytest.CaptureFixture[str]) -> None:
        text = printed(capsys, str(model), "-c", "8192", "-np", "2", "-ctk", "q8_0", "-ctv", "q8_0")
        assert "In RAM, 2 slots of 4,096 tokens" in text
        assert "keys q8_0, values q8_0" in text
        assert "-ctk q8_0 -ctv q8_0" in text

    def test_the_demo_model_where_none_is_named(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert "SmolLM2" in printed(capsys)

    def test_json(self, model: Path, capsys: pytest.CaptureFixture[str]) -> None:
        found = json.loads(printed(capsys, str(model), "--json", "-c", "2048"))
        assert found["parameters"] > found["active_parameters"] > 0
        assert [step["n_gpu_layers"] for step in found["offload"]] == list(range(32))
        ram = found["without_offload"]["ram"]
        assert ram["own"] == ram["own_weights"] + ram["cache"] + ram["compute"] + ram["process"]
        assert ram["needed"] == ram["own"] + ram["mapped_weights"]
        assert found["context"] == {"slots": 4, "tokens_each": 2048}
        assert found["best"]["n_gpu_layers"] == 0 or found["machine"]["devices"]

    def test_an_adapter_of_another_model_is_one_line(
        self, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        lora = write_lora(tmp_path / "lora.gguf", {"blk.0.attn_q.weight": ((2, 64), (64, 2))})
        with pytest.raises(SystemExit):
            run(str(model), "--lora", str(lora))
        assert re.fullmatch(r"ggufd: .*was made for another model than .*four.gguf\n", capsys.readouterr().err)

    def test_a_folder_is_a_model_cards_table(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        for kind in ("q8_0", "q4_0", "f16"):
            write(tmp_path / "m" / f"m.{kind}.gguf", *llama(kind=kind))
        lines = printed(capsys, str(tmp_path / "m")).splitlines()
        assert lines[0].startswith("| file | quantisation |")
        assert [line.split("|")[1].strip() for line in lines[2:5]] == ["m.q4_0.gguf", "m.q8_0.gguf", "m.f16.gguf"]
        assert len({line.count("|") for line in lines[:5]}) == 1

    def test_a_folder_as_json_is_a_list(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        write(tmp_path / "m" / "m.gguf", *llama())
        assert len(json.loads(printed(capsys, str(tmp_path / "m"), "--json"))) == 1

    def test_a_bad_file_in_a_folder_is_told_and_left_out(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        write(tmp_path / "m" / "good.gguf", *llama())
        bad = tmp_path / "m" / "bad.gguf"
        bad.write_bytes(b"GGUF")
        with pytest.raises(SystemExit) as caught:
            run(str(tmp_path / "m"))
        out, err = capsys.readouterr()
        assert not caught.value.code
        assert [line.split("|")[1].strip() for line in out.splitlines()[2:3]] == ["good.gguf"]
        assert re.fullmatch(rf"ggufd: skipped: {re.escape(str(bad))}: ends within its header.*\n", err)

    def test_a_folder_of_bad_files_alone_is_an_error(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        (tmp_path / "m").mkdir()
        (tmp_path / "m" / "bad.gguf").write_bytes(b"GGUF")
        with pytest.raises(SystemExit) as caught:
            run(str(tmp_path / "m"))
        assert caught.value.code == 1
        assert capsys.readouterr().err.endswith("no model in this folder can be used\n")

    def test_a_bad_file_is_one_line(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        (tmp_path / "m.gguf").write_bytes(b"GGUF")
        with pytest.raises(SystemExit) as caught:
            run("m.gguf")
        assert caught.value.code == 1
        assert capsys.readouterr().err.startswith("ggufd: m.gguf: ends within its header")


class TestProjector:
    @pytest.fixture
    def eyed(self, tmp_path: Path) -> Path:
        """A small model with its projector of 900 MiB beside it."""
        path = write(tmp_path / "eyed" / "m.gguf", *llama())
        write_sparse(tmp_path / "eyed" / "mmproj.gguf", 64, n_bytes=900 << 20)
        return path

    def plan_of(self, path: Path, machine: Machine, **flags: Any) -> ModelPlan:
        config = sources.load(None, {key: str(value) for key, value in flags.items()}, {})
        model = model_files.with_projector(config, hub.find(str(path)), may_fetch=False)
        return report.make(model, config, engine_settings.context_params(config), machine)

    def test_it_counts_among_the_ram(self, eyed: Path) -> None:
        machine = Machine(32 * GIB, 32 * GIB)
        seeing, blind = self.plan_of(eyed, machine), self.plan_of(eyed, machine, mmproj_auto=False)
        assert seeing.images is not None
        assert 900 << 20 < seeing.images.ram < 1150 << 20
        assert (seeing.own - blind.own, seeing.needed - blind.needed) == (seeing.images.ram,) * 2
        assert re.search(r"Image projector, with its process +1.04 GiB +its rows up to 512 MiB of disk", shown(seeing))
        assert "Image projector" not in shown(blind)

    def test_it_takes_its_part_of_the_gpu_unless_told_not_to(self, eyed: Path) -> None:
        on_gpu, on_cpu = self.plan_of(eyed, GPU), self.plan_of(eyed, GPU, mmproj_offload=False)
        assert on_gpu.images is not None
        assert on_cpu.images is not None
        assert on_gpu.images.vram > 900 << 20
        assert on_cpu.images.vram == 0
        left = replace(GPU, devices=(Device("A small GPU", 1 << 30, 1 << 30),))
        assert not self.plan_of(eyed, left).choice.placement.n_gpu_layers
        assert self.plan_of(eyed, left, mmproj_auto=False).choice.placement.n_gpu_layers

    def test_programs_are_told(self, eyed: Path) -> None:
        told = report.as_json(self.plan_of(eyed, GPU))["projector"]
        assert told["file"] == str(eyed.with_name("mmproj.gguf"))
        assert (told["type"], told["size"]) == ("mlp", eyed.with_name("mmproj.gguf").stat().st_size)
        assert report.as_json(self.plan_of(eyed, GPU, mmproj_auto=False))["projector"] is None

    def test_the_command_names_it_where_the_settings_did(self, eyed: Path, capsys: pytest.CaptureFixture[str]) -> None:
        path = eyed.with_name("mmproj.gguf")
        assert f"--mmproj {path}" in printed(capsys, str(eyed), "--mmproj", str(path))
        assert "--mmproj" not in printed(capsys, str(eyed))


def test_what_stays_loaded_beside_counts_as_taken(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write(tmp_path / "chat.gguf", *llama(n_layers=4, n_ctx=1 << 20))
    vectors = write_tiny_bert(tmp_path / "vectors.gguf")
    alone = json.loads(printed(capsys, str(path), "--json"))
    assert alone["beside"] == []
    Path("config.toml").write_text(
        f"""
        [model]
        model = "{path}"
        [models.vectors]
        model = "{vectors}"
        keep_loaded = true
        """
    )
    (one,) = json.loads(printed(capsys, "--json"))["beside"]
    assert (one["name"], one["vram"]) == ("vectors", 0)
    assert one["ram"] > 1 << 20
    assert re.search(r"Beside it: vectors +\d+ MiB +stays loaded", printed(capsys, str(path)))
    # The model itself is not beside itself.
    assert json.loads(printed(capsys, str(vectors), "--json"))["beside"] == []


def test_less_is_left_beside_what_stays(tmp_path: Path) -> None:
    path = write(tmp_path / "chat.gguf", *llama(n_layers=4, n_ctx=1 << 20))
    machine = Machine(ram_total=8 * GIB, ram_free=8 * GIB)
    config = sources.load(None, {}, {})
    context = engine_settings.context_params(config)

    def tokens(*kept: KeptUse) -> int:
        one = report.make(hub.find(str(path)), config, context, machine, kept)
        return max(slots * n_ctx for slots, n_ctx in one.contexts)

    assert tokens(KeptUse("vectors", 7 * GIB, 0)) < tokens()
