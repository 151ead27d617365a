from pathlib import Path

import pytest

from onward.errors import UserError
from onward.training import hardware as hardware_module
from onward.training.hardware import (
    control_group_memory,
    known_hardware,
    machine_memory_bytes,
    measure_matmul_peak,
    measured,
    this_machine,
)


@pytest.mark.parametrize("name", ["h100", "H100", "NVIDIA H100 80GB HBM3", "nvidia h100 80gb hbm3", "h100-sxm"])
def test_a_device_is_found_under_any_of_its_names(name: str) -> None:
    found = known_hardware(name)
    assert (found.name, found.kind, found.count) == ("h100", "cuda", 1)


@pytest.mark.parametrize(
    ("name", "device", "count"),
    [("8xh100", "h100", 8), ("2x rtx4090", "rtx-4090", 2), ("4 x L40S", "l40s", 4), ("2×a100", "a100-80gb", 2)],
)
def test_several_are_written_with_their_number(name: str, device: str, count: int) -> None:
    found = known_hardware(name)
    assert (found.name, found.count) == (device, count)
    assert found.memory_bytes == known_hardware(device).memory_bytes


def test_a_misspelt_name_is_answered_with_the_nearest_and_all() -> None:
    with pytest.raises(UserError) as met:
        known_hardware("rtx-490")
    assert met.value.todo == "did you mean rtx-4090?"
    assert "h100-pcie" in (met.value.expected or "")


@pytest.mark.parametrize("name", ["0xh100", "", "x", "8x"])
def test_nothing_and_none_of_something_are_no_hardware(name: str) -> None:
    with pytest.raises(UserError, match="not known"):
        known_hardware(name)


@pytest.mark.parametrize(
    ("name", "with_sparsity"),
    [
        ("h100", 1979),
        ("h100-pcie", 1513),
        ("h200", 1979),
        ("a100", 624),
        ("l40s", 733),
        ("l4", 242),
        ("rtx-4090", 330.3),
    ],
)
def test_no_peak_counts_sparsity(name: str, with_sparsity: float) -> None:
    """What the data sheets print for bf16 tensor cores is twice the dense rate."""
    assert known_hardware(name).bf16_flops == pytest.approx(with_sparsity / 2 * 1e12, rel=0.02)


def test_a_device_without_bf16_tensor_cores_has_no_peak_there() -> None:
    assert known_hardware("t4").bf16_flops is None
    assert not known_hardware("v100").native_bf16
    assert known_hardware("a10").native_bf16


def test_names_are_told_apart() -> None:
    plain = [hardware_module._plain(name) for row in hardware_module._GPUS for name in {row[0], *row[1]}]
    drivers = [name for row in hardware_module._GPUS for name in row[1]]
    assert len(drivers) == len(set(drivers))
    owners = {hardware_module._plain(name): row[0] for row in hardware_module._GPUS for name in {row[0], *row[1]}}
    assert all(known_hardware(name).name == owner for name, owner in owners.items())
    assert set(plain) == set(owners)


@pytest.mark.parametrize(
    ("device", "wanted", "precision"),
    [("h100", "auto", "bf16"), ("t4", "auto", "fp32"), ("h100", "fp32", "fp32"), ("t4", "bf16", "bf16")],
)
def test_precision_is_bf16_where_it_is_native(device: str, wanted: str, precision: str) -> None:
    assert known_hardware(device).precision(wanted) == precision  # type: ignore[arg-type]


def test_this_machines_processor_has_memory_and_no_peak_until_it_is_measured() -> None:
    found = this_machine("cpu")
    assert (found.kind, found.count, found.peak("fp32"), found.peak("bf16")) == ("cpu", 1, None, None)
    assert 10**8 < found.memory_bytes == machine_memory_bytes()
    known = measured(found, "fp32", seconds=0.05)
    assert known.peak("fp32") is not None
    assert known.peak("fp32") > 1e9  # type: ignore[operator]
    assert known.peak("bf16") is None
    assert measured(known, "fp32") is known


def test_a_matmul_peak_is_operations_over_the_median_duration(monkeypatch: pytest.MonkeyPatch) -> None:
    durations = iter([9.0, 2.0, 1.0, 4.0, 9.0, 8.0, 16.0, 12.0])  # per size: the first chooses the kernel
    monkeypatch.setattr(hardware_module, "_seconds_of", lambda *_: next(durations))
    peak = measure_matmul_peak("cpu", "fp32", seconds=0.0)
    assert peak == max(2 * 1024**3 / 2.0, 2 * 2048**3 / 12.0)


def control_groups(folder: Path, rows: dict[str, dict[str, str]]) -> Path:
    for place, files in rows.items():
        (folder / place).mkdir(parents=True, exist_ok=True)
        for name, content in files.items():
            (folder / place / name).write_text(content + "\n")
    return folder


def test_the_second_versions_groups_are_read_up_to_the_root(tmp_path: Path) -> None:
    used = {"memory.current": "700", "memory.stat": "anon 500\ninactive_file 200"}
    rows = {"job": {"memory.max": "max", **used}, "job/step": {"memory.max": "1000", **used}}
    membership = tmp_path / "membership"
    membership.write_text("0::/job/step\n")
    root = control_groups(tmp_path / "sys", rows | {"": {"memory.max": "5000", **used}})
    assert control_group_memory(root, membership) == [(1000, 500), (5000, 500)]


def test_the_first_versions_groups_are_read_and_no_limit_is_none(tmp_path: Path) -> None:
    used = {"memory.usage_in_bytes": "700", "memory.stat": "total_inactive_file 100"}
    rows = {"memory/job": {"memory.limit_in_bytes": "2000", **used}}
    rows |= {"memory": {"memory.limit_in_bytes": str(2**63 - 4096), **used}}
    membership = tmp_path / "membership"
    membership.write_text("9:name=systemd:/\n4:memory:/job\n1:cpu:/job\n0::/\n")
    assert control_group_memory(control_groups(tmp_path / "sys", rows), membership) == [(2000, 600)]


def test_a_containers_own_root_is_read_where_its_path_is_not_shown(tmp_path: Path) -> None:
    used = {"memory.current": "700", "memory.stat": "inactive_file 0"}
    membership = tmp_path / "membership"
    membership.write_text("0::/kubepods/pod7/box\n")
    root = control_groups(tmp_path / "sys", {"": {"memory.max": "3000", **used}})
    assert control_group_memory(root, membership) == [(3000, 700)]


def test_without_control_groups_there_is_no_limit(tmp_path: Path) -> None:
    assert control_group_memory(tmp_path, tmp_path / "missing") == []


def test_no_torch_is_needed_to_look_hardware_up() -> None:
    import subprocess
    import sys

    code = "import sys; from onward.training.hardware import known_hardware, this_machine; known_hardware('8xh100'); "
    code += "this_machine('cpu'); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
