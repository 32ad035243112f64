"""Nomad keeps the contract of every cluster, and what is said of it in particular."""

from __future__ import annotations

from contract_cluster import ClusterContract
from contract_nomad import NomadContract


class TestNomadAsACluster(ClusterContract):
    pass


class TestNomad(NomadContract):
    pass
