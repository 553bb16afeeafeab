"""Thermal zones: the hottest one that answers."""

from __future__ import annotations

from edge_effdet.device.service.temperature import read_heat


def write_zones(folder, *zones):
    for number, (name, value) in enumerate(zones):
        zone = folder / f"thermal_zone{number}"
        zone.mkdir(parents=True)
        (zone / "type").write_text(f"{name}\n")
        if value is not None:
            (zone / "temp").write_text(f"{value}\n")


def test_the_hottest_zone_counts(tmp_path):
    # As an Orin shows them: one is powered off and has no value, another one a value that is no temperature.
    write_zones(
        tmp_path, ("cpu-thermal", 48500), ("gpu-thermal", -256000), ("tj-thermal", 51250), ("cv0-thermal", None)
    )
    heat = read_heat(tmp_path)
    assert (heat.celsius, heat.where) == (51.25, "tj-thermal")


def test_a_zone_that_always_shows_the_same_is_left_out(tmp_path):
    write_zones(tmp_path, ("PMIC-Die", 100000), ("CPU-therm", 40000))
    assert read_heat(tmp_path).celsius == 40.0


def test_without_a_zone_there_is_no_temperature(tmp_path):
    heat = read_heat(tmp_path)
    assert heat.celsius is None
    assert "no thermal zone" in heat.where
