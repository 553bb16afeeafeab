"""The unit, as systemd's own tools see it."""

from __future__ import annotations

import re
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from edge_effdet.device.service.unit import UnitSettings, make_unit, quote, unit_name
from edge_effdet.errors import UsageError

EXPOSURE = {"cpu": 17, "gpu": 20}
"""The most that ``systemd-analyze security`` may find, in tenths of its scale, on which 100 is a service without limits."""

needs_systemd = pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd-analyze is not installed")


def settings_for(folder: Path, **changes) -> UnitSettings:
    usual = UnitSettings(
        name="bccd", store_folder=folder, source="/dev/video0", on_gpu=False, groups=["video"], systemd=252
    )
    return replace(usual, **changes)


@pytest.fixture
def installation(tmp_path) -> Path:
    """A folder whose name has all that a unit has to escape, and an entry that can be run."""
    folder = tmp_path / "ort mit möbeln 100%n $HOME ;" / "bccd"
    (folder / "state").mkdir(parents=True)
    entry = folder / "edge-effdet"
    entry.write_text("#!/bin/sh\n")
    entry.chmod(0o755)
    return folder


def verify(folder: Path, text: str) -> str:
    """What systemd-analyze has to say of a unit, which is nothing where all is well."""
    unit = folder / unit_name("bccd")
    unit.write_text(text, encoding="utf-8")
    done = subprocess.run(["systemd-analyze", "verify", "--man=no", str(unit)], capture_output=True, text=True)
    # It reads the units of the machine too, and complains of those.
    said = [line for line in (done.stdout + done.stderr).splitlines() if "bccd" in line or "Unknown" in line]
    return "\n".join([*said, *([f"code {done.returncode}"] if done.returncode and said else [])])


@needs_systemd
@pytest.mark.parametrize(
    "changes", [{}, {"on_gpu": True}, {"source": "nvarguscamerasrc ! nvvidconv"}, {"system": False}], ids=str
)
def test_systemd_reads_the_unit(installation, tmp_path, changes):
    assert verify(tmp_path, make_unit(settings_for(installation, **changes))) == ""


@needs_systemd
def test_systemd_finds_the_entry_at_its_path(installation, tmp_path):
    # Of a program systemd-analyze says whether it is there, and of its arguments nothing.
    text = make_unit(settings_for(installation)).replace("=:/bin/sh ", "=:")
    assert verify(tmp_path, text) == ""
    assert "not executable" in verify(tmp_path, text.replace('edge-effdet" run', 'edge-effdet-2" run'))


def test_a_path_that_directives_read_differently_is_refused(tmp_path):
    for name in ('a "b"', "a\\b", "a\nb", "a\x7fb"):
        with pytest.raises(UsageError, match="`root`"):
            make_unit(settings_for(tmp_path / name))
    assert "/it's/" in make_unit(settings_for(Path("/opt/it's/bccd")))


@needs_systemd
def test_systemd_would_notice_a_wrong_directive(installation, tmp_path):
    text = make_unit(settings_for(installation))
    assert "Unknown" in verify(tmp_path, text.replace("UMask=", "UMaske="))
    # The directives that are left out for an older systemd are unknown to it.
    newer = make_unit(settings_for(installation, systemd=254))
    version = int(
        re.findall(
            r"systemd (\d+)", subprocess.run(["systemd-analyze", "--version"], capture_output=True, text=True).stdout
        )[0]
    )
    assert ("RestartSteps" in verify(tmp_path, newer)) == (version < 254)


@needs_systemd
@pytest.mark.parametrize("kind", EXPOSURE)
def test_the_service_may_do_little(installation, tmp_path, kind):
    unit = tmp_path / unit_name("bccd")
    unit.write_text(make_unit(settings_for(installation, on_gpu=kind == "gpu")), encoding="utf-8")
    command = [
        "systemd-analyze",
        "security",
        "--offline=true",
        f"--threshold={EXPOSURE[kind]}",
        "--no-pager",
        str(unit),
    ]
    done = subprocess.run(command, capture_output=True, text=True)
    print(kind, done.stdout.strip().splitlines()[-1])
    assert done.returncode == 0, done.stdout
    # Without what is forbidden the score is another one, so that the bound means something.
    unit.write_text(f"[Service]\nExecStart={quote(str(installation / 'edge-effdet'))}\n", encoding="utf-8")
    assert subprocess.run(command, capture_output=True).returncode != 0


def lines_of(settings: UnitSettings) -> dict[str, str]:
    lines = [line for line in make_unit(settings).splitlines() if "=" in line and not line.startswith("#")]
    return dict(line.split("=", 1) for line in lines)


def test_a_gpu_keeps_its_devices(tmp_path):
    on_cpu, on_gpu = lines_of(settings_for(tmp_path)), lines_of(settings_for(tmp_path, on_gpu=True))
    assert on_cpu["DevicePolicy"] == "closed"
    assert on_cpu["DeviceAllow"] == "char-video4linux rw"
    assert on_gpu["DevicePolicy"] == "auto"
    # Either of them would hide the GPU's devices.
    assert "DeviceAllow" not in on_gpu
    assert "ProtectClock" not in on_gpu
    assert on_cpu["ProtectClock"] == "yes"


def test_what_the_source_needs_is_left_open(tmp_path):
    usual = lines_of(settings_for(Path("/opt/edge-effdet/bccd")))
    assert (usual["ProtectHome"], usual["PrivateTmp"]) == ("yes", "yes")
    csi = lines_of(settings_for(Path("/opt/edge-effdet/bccd"), source="nvarguscamerasrc ! nvvidconv"))
    assert (csi["PrivateTmp"], csi["DevicePolicy"]) == ("no", "auto")
    for changes in ({"source": "/home/me/photos"}, {"store_folder": Path("/root/x/bccd")}):
        assert lines_of(replace(settings_for(Path("/opt/edge-effdet/bccd")), **changes))["ProtectHome"] == "read-only"
    assert lines_of(settings_for(Path("/opt/x"), source="/homes/photos"))["ProtectHome"] == "yes"


def test_what_a_system_lacks_is_left_out(tmp_path):
    assert "SupplementaryGroups" not in lines_of(settings_for(tmp_path, groups=[]))
    assert lines_of(settings_for(tmp_path, groups=["video", "render"]))["SupplementaryGroups"] == "video render"
    old, new = lines_of(settings_for(tmp_path, systemd=249)), lines_of(settings_for(tmp_path, systemd=254))
    assert "RestartSteps" not in old
    assert (new["RestartSteps"], new["RestartMaxDelaySec"]) == ("6", "60")


def test_a_user_has_no_other_user_and_no_sandbox(tmp_path):
    lines = lines_of(settings_for(tmp_path, system=False))
    assert not {"User", "ProtectSystem", "DevicePolicy", "CapabilityBoundingSet"} & set(lines)
    assert lines["WantedBy"] == "default.target"
    assert lines["Type"] == "notify"


def test_the_memory_share_is_written_as_percent(tmp_path):
    assert lines_of(settings_for(tmp_path, memory_share=0.75))["MemoryMax"] == "75%"
