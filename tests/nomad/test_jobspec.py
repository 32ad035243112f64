"""What a function needs becomes a job; nothing that it is called by can change the job's structure."""

from __future__ import annotations

import dataclasses
import json
import re
import subprocess
from pathlib import Path
from typing import Any

import nomadfn_jobspecs
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from nomad_double import jobs
from nomadfn_agent import wire
from real_nomad import RealNomad, find

from nomadfn.adapters import jobspec
from nomadfn.adapters.jobspec import JobSettings
from nomadfn.adapters.nomad_api import NomadApi
from nomadfn.adapters.nomad_plan import plan
from nomadfn.control.containers import needs_for
from nomadfn.exception import InvalidError, ServiceError
from nomadfn.ports import Needs
from nomadfn.sdk import gpu

PLAIN = Needs(app="thumbs", function="embed")
HOSTILE = (
    '"}\n task "evil" { driver = "raw_exec" }\n x = "',
    '${file("/etc/passwd")}',
    "%{ for x in [1] }a%{ endfor }",
    '\\"${var.job_id}\n}',
    'EOT\n} job "b" {}',
    '$${x} \u2028 {{ key "a" }} \U0001f600',
)
texts = st.one_of(st.sampled_from(HOSTILE), st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"])))
needs = st.builds(
    Needs,
    app=texts,
    function=texts,
    image=texts,
    cpu_cores=st.none() | st.floats(0.01, 64),
    memory_mib=st.none() | st.integers(1, 1 << 20),
    gpu=st.sampled_from([(), ("T4",), ("any:2",), ("A100-80GB",), ("H100:4", "A100-80GB:4"), ("H100", "L40S", "T4")]),
    max_containers=st.none() | st.integers(1, 40),
)


def shape(value: Any) -> Any:
    """A job without its texts: keys, lengths of lists and kinds of values."""
    if isinstance(value, dict):
        return {key: shape(one) for key, one in value.items()}
    if isinstance(value, list):
        return [shape(one) for one in value]
    return type(value).__name__


@given(needs)
def test_only_the_variables_differ_and_they_are_plain_json(wanted: Needs) -> None:
    rendered = jobspec.render(wanted, JobSettings())
    plain = jobspec.render(dataclasses.replace(wanted, app="a", function="f", image="i"), JobSettings())
    assert rendered.hcl == plain.hcl == nomadfn_jobspecs.read("function.nomad.hcl")
    values = json.loads(rendered.variables)
    assert shape(values) == shape(json.loads(plain.variables))
    assert shape(jobs.parse(values)) == shape(jobs.parse(json.loads(plain.variables)))
    assert (values["app"], values["function"]) == (wanted.app, wanted.function)
    assert re.fullmatch(r"[a-z0-9-]{1,128}", rendered.job_id)


@given(texts)
def test_a_gpu_string_is_a_name_that_is_known_or_is_refused(text: str) -> None:
    for wanted in (text, f"T4:{text}", f"{text}:2", ["T4", text]):
        try:
            models = gpu.parse(wanted, "embed")
        except InvalidError:
            continue
        for model in models:
            assert re.fullmatch(r"[A-Za-z0-9-]+(:[0-9]{1,2})?", model)


@given(st.dictionaries(texts, texts, max_size=4), texts, texts)
def test_no_env_value_stands_in_a_job(env: dict[str, str], app: str, function: str) -> None:
    spec = wire.FunctionSpec(name=function, module="m", qualname="f", env=env)
    bare = wire.FunctionSpec(name=function, module="m", qualname="f")
    assert jobspec.render(needs_for(app, spec), JobSettings()) == jobspec.render(needs_for(app, bare), JobSettings())


def test_equal_needs_give_equal_bytes_and_every_part_of_a_spec_counts() -> None:
    assert jobspec.render(PLAIN, JobSettings()) == jobspec.render(PLAIN, JobSettings())
    others = [
        dataclasses.replace(PLAIN, **change)
        for change in ({"app": "Thumbs"}, {"memory_mib": 512}, {"cpu_cores": 2.0}, {"gpu": ("T4",)}, {"image": "b"})
    ]
    assert len({jobspec.render(one, JobSettings()).job_id for one in [PLAIN, *others]}) == 6


def test_names_that_look_alike_are_jobs_of_their_own() -> None:
    ids = {jobspec.render(Needs(app=app, function="f"), JobSettings()).job_id for app in ("a b", "a-b", "A-B", "ä")}
    assert len(ids) == 4


def test_where_the_control_service_is_makes_no_other_job_unless_it_offers_the_agent() -> None:
    for fetched, same in (("http://artifacts/agent.pyz", True), ("?python=3.12", False), ("", False)):
        one, other = [
            jobspec.render(PLAIN, JobSettings(agent_url=fetched, control_urls=(url,)))
            for url in ("http://a", "http://b")
        ]
        assert (one.job_id == other.job_id) == same
        assert one.variables != other.variables


def test_a_task_finds_its_agent_by_itself_unless_an_address_is_given() -> None:
    own = json.loads(jobspec.render(PLAIN, JobSettings(agent_url="?python=3.12")).variables)
    assert (own["agent_url"], own["agent_path"]) == ("", "/v1/agent/nomadfn-agent.pyz?python=3.12")
    assert own["agent_args"] == ["-c", nomadfn_jobspecs.start()]
    assert "${" not in own["agent_args"][1], "Nomad would put something in its place"
    given = json.loads(jobspec.render(PLAIN, JobSettings(agent_url="http://artifacts/agent.pyz")).variables)
    assert (given["agent_url"], given["agent_path"]) == ("http://artifacts/agent.pyz", "")
    assert given["agent_args"] == ["${NOMAD_TASK_DIR}/nomadfn-agent.pyz"]


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"priority": 50}, "priority"),
        ({"ceiling": 0}, "ceiling"),
        ({"driver": "qemu"}, "driver"),
        ({"cluster": "Big One"}, "cluster"),
        ({"constraints": (("${attr.kernel.name}", "is", "linux"),)}, "constraints"),
        ({"kill_timeout_s": 0}, "kill_timeout_s"),
    ],
)
def test_a_wrong_setting_is_refused_by_its_name(change: dict[str, Any], named: str) -> None:
    with pytest.raises(InvalidError, match=named):
        JobSettings(**change)


def test_a_driver_without_images_refuses_one_and_says_what_to_do() -> None:
    with pytest.raises(InvalidError, match=r"raw_exec, which has none; leave the image out"):
        jobspec.render(dataclasses.replace(PLAIN, image="b"), JobSettings(driver="raw_exec"))
    with pytest.raises(InvalidError, match="image=''"):
        jobspec.render(PLAIN, JobSettings(image=""))
    with pytest.raises(InvalidError, match="null character"):
        jobspec.render(dataclasses.replace(PLAIN, app="a\0"), JobSettings())


def within(small: Any, large: Any, where: str = "job") -> None:
    """Every value of `small` stands in `large`, too; what is empty may be missing."""
    if isinstance(small, dict):
        for key, value in small.items():
            if value or value is False:
                assert key in large, f"{where}.{key}"
                within(value, large[key], f"{where}.{key}")
    elif isinstance(small, list):
        assert len(small) == len(large), where
        for one, two in zip(small, large, strict=True):
            within(one, two, where)
    else:
        assert small == large, where


def signs_identities(api: NomadApi) -> bool:
    return api.version() >= (1, 7, 0)


@pytest.fixture
def api(real_nomad: RealNomad) -> Any:
    api = NomadApi(real_nomad.address)
    yield api
    api.close()


@pytest.mark.nomad
class TestTheRealParser:
    @settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
    @given(wanted=needs)
    def test_no_text_changes_the_structure_of_a_job_and_the_double_parses_alike(
        self, api: NomadApi, wanted: Needs
    ) -> None:
        identity = signs_identities(api)
        chosen = JobSettings(control_urls=("http://a", "http://b"), workload_identity=identity)
        rendered = jobspec.render(wanted, chosen)
        plain = jobspec.render(dataclasses.replace(wanted, app="a", function="f", image="i"), chosen)
        job = api.parse(rendered.hcl, rendered.variables)
        assert shape(job) == shape(api.parse(plain.hcl, plain.variables))
        assert (job["Meta"]["nomadfn_app"], job["Meta"]["nomadfn_function"]) == (wanted.app, wanted.function)
        within(jobs.parse(json.loads(rendered.variables)), job)

    def test_every_driver_and_both_ways_to_join_are_accepted(self, api: NomadApi) -> None:
        for driver in jobspec.DRIVERS:
            for identity in {signs_identities(api), False}:
                chosen = JobSettings(
                    driver=driver,
                    control_urls=("http://a",),
                    agent_url="http://a/agent?x=1",
                    workload_identity=identity,
                    constraints=(("${attr.kernel.name}", "=", "linux"), ("${meta.rack}", "regexp", "^r[12]$")),
                )
                rendered = jobspec.render(PLAIN, chosen)
                job = api.parse(rendered.hcl, rendered.variables)
                [task] = job["TaskGroups"][0]["Tasks"]
                assert ("image" in task["Config"]) == (driver in jobspec.IMAGE_DRIVERS)
                assert bool(task["Templates"]) == (not identity)
                assert job["Update"]["MaxParallel"] == 0
                assert task["Artifacts"][0]["GetterSource"] == "http://a/agent?x=1"
                api.plan(job)

    def test_text_in_the_job_spec_itself_would_be_refused(self, api: NomadApi) -> None:
        rendered = jobspec.render(PLAIN, JobSettings(workload_identity=False))
        with pytest.raises(ServiceError, match="refused"):
            api.parse(rendered.hcl + "}", rendered.variables)

    def test_both_files_are_valid_by_themselves(self, real_nomad: RealNomad, tmp_path: Path) -> None:
        path, _ = find()
        rendered = jobspec.render(PLAIN, JobSettings(driver="raw_exec", image="", workload_identity=False))
        control = json.dumps({"driver": "raw_exec", "settings": {"NOMADFN_LIMITS_PENDING_INPUTS": "5"}})
        for name, variables in (("function", rendered.variables), ("control", control)):
            (tmp_path / f"{name}.nomad.hcl").write_text(nomadfn_jobspecs.read(f"{name}.nomad.hcl"))
            (tmp_path / f"{name}.vars.json").write_text(variables)
            command = [path, "job", "validate", f"-address={real_nomad.address.url}"]
            files = [f"-var-file={tmp_path}/{name}.vars.json", f"{tmp_path}/{name}.nomad.hcl"]
            done = subprocess.run([*command, *files], capture_output=True, text=True, timeout=60)
            assert done.returncode == 0, done.stdout + done.stderr
            assert "validation successful" in done.stdout

    def test_run_by_hand_it_is_the_same_job(self, real_nomad: RealNomad, api: NomadApi, tmp_path: Path) -> None:
        path, _ = find()
        chosen = JobSettings(cluster="by-hand", driver="raw_exec", image="", workload_identity=False)
        rendered = jobspec.render(PLAIN, chosen)
        (tmp_path / "job.nomad.hcl").write_text(rendered.hcl)
        (tmp_path / "vars.json").write_text(rendered.variables)
        command = [path, "job", "run", "-detach", f"-address={real_nomad.address.url}"]
        files = [f"-var-file={tmp_path}/vars.json", f"{tmp_path}/job.nomad.hcl"]
        done = subprocess.run([*command, *files], capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done.stdout + done.stderr
        assert plan(api, chosen, PLAIN) == f"  job {rendered.job_id}: nothing changes\n"
        api.deregister(rendered.job_id)
