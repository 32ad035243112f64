"""GPU names: each finds the models that drivers report for it, and no other."""

from __future__ import annotations

import re

import pytest

from nomadfn.core import gpus

REPORTED = {
    "Tesla T4": {"T4"},
    "NVIDIA L4": {"L4"},
    "NVIDIA A10": {"A10"},
    "NVIDIA A10G": {"A10G"},
    "NVIDIA A40": {"A40"},
    "NVIDIA A100-SXM4-40GB": {"A100", "A100-40GB"},
    "NVIDIA A100-PCIE-40GB": {"A100", "A100-40GB"},
    "A100-SXM4-40GB": {"A100", "A100-40GB"},
    "NVIDIA A100-SXM4-80GB": {"A100", "A100-80GB"},
    "NVIDIA A100 80GB PCIe": {"A100", "A100-80GB"},
    "NVIDIA A100-SXM4-40GB MIG 1g.5gb": set(),
    "NVIDIA L40": {"L40"},
    "NVIDIA L40S": {"L40S"},
    "Tesla V100-SXM2-16GB": {"V100"},
    "Tesla V100S-PCIE-32GB": {"V100"},
    "Tesla P100-PCIE-16GB": {"P100"},
    "NVIDIA RTX A6000": {"RTX-A6000"},
    "NVIDIA RTX 6000 Ada Generation": set(),
    "NVIDIA GeForce RTX 3090": {"RTX-3090"},
    "NVIDIA GeForce RTX 3090 Ti": set(),
    "NVIDIA GeForce RTX 4090": {"RTX-4090"},
    "NVIDIA GeForce RTX 5090": {"RTX-5090"},
    "NVIDIA RTX PRO 6000 Blackwell Server Edition": {"RTX-PRO-6000"},
    "NVIDIA RTX PRO 6000 Blackwell Max-Q Workstation Edition": {"RTX-PRO-6000"},
    "NVIDIA H100 80GB HBM3": {"H100"},
    "NVIDIA H100 PCIe": {"H100"},
    "NVIDIA H100 NVL": {"H100"},
    "NVIDIA H100 80GB HBM3 MIG 1g.10gb": set(),
    "NVIDIA H200": {"H200"},
    "NVIDIA GH200 480GB": {"GH200"},
    "NVIDIA B200": {"B200"},
    "NVIDIA B300 SXM6 AC": {"B300"},
}


@pytest.mark.parametrize("reported", REPORTED)
def test_a_reported_model_answers_to_its_names_and_to_no_other(reported: str) -> None:
    fits = {name for name in gpus.MODELS if re.fullmatch(gpus.choose([name]).patterns[0], reported)}
    assert fits == REPORTED[reported]


def test_every_name_is_reported_by_some_driver() -> None:
    assert set().union(*REPORTED.values()) == set(gpus.MODELS)


def test_a_list_keeps_its_order_and_its_one_count() -> None:
    choice = gpus.choose(["H100:4", "A100-80GB:4"])
    assert (choice.count, choice.names) == (4, ("H100", "A100-80GB"))
    assert str(choice) == "4 × H100 or A100-80GB"
    assert len(choice.patterns) == 2


def test_memory_bounds_hold_only_where_every_model_of_a_list_has_them() -> None:
    assert gpus.choose(["A100-80GB"]).memory_min_mib > 48 * 1024
    assert gpus.choose(["A100-40GB"]).memory_max_mib < 72 * 1024
    mixed = gpus.choose(["H100", "A100-80GB"])
    assert (mixed.memory_min_mib, mixed.memory_max_mib) == (0, 0)


def test_any_is_any() -> None:
    choice = gpus.choose(["any:2"])
    assert (choice.count, choice.patterns) == (2, ())
    assert str(choice) == "2 × any GPU"


def test_no_gpu_is_none() -> None:
    assert gpus.choose([]).count == 0


def test_what_nodes_report_is_shown_by_the_name_that_a_program_would_write() -> None:
    assert gpus.short_name("Tesla T4") == "T4"
    assert gpus.short_name("NVIDIA A100 80GB PCIe") == "A100-80GB"
    assert gpus.short_name("Matrox G200") == "Matrox G200"
