"""What nomadfn relies on in Nomad, and does with it. The double and a real Nomad are held to all of it."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import os
import signal
from collections.abc import Awaitable, Callable

import pytest
from agent_door import Door
from nomad_worlds import NEEDS, NomadWorld, Scene, join_token_of

from nomadfn.adapters.nomad_words import has_ended, name_index
from nomadfn.ports import (
    ContainerEnded,
    ContainerFound,
    ContainerLeaving,
    ContainerStarted,
    PlacementBlocked,
)

ONE_LANE = dataclasses.replace(NEEDS, max_containers=1)
TWO_LANES = dataclasses.replace(NEEDS, max_containers=2)
Run = Callable[[Callable[[Scene], Awaitable[None]]], None]


class NomadContract:
    @pytest.fixture
    def run(self, world: NomadWorld) -> Run:
        def run(scenario: Callable[[Scene], Awaitable[None]], **changes: object) -> None:
            async def main() -> None:
                async with world.opened(**changes) as scene:
                    await scenario(scene)

            asyncio.run(main())

        return run

    async def started(self, world: NomadWorld, scene: Scene, count: int, needs: object = NEEDS) -> None:
        for index in range(count):
            scene.cluster.start(world.placement(f"ct-{index}", index, needs))
        for index in range(count):
            await scene.until(ContainerStarted, f"ct-{index}")

    def test_from_six_to_two_the_highest_of_each_lane_go(self, world: NomadWorld, run: Run) -> None:
        async def scenario(scene: Scene) -> None:
            await self.started(world, scene, 6, TWO_LANES)
            place = scene.cluster.place_of("ct-5")
            assert place is not None
            assert place[1:3] == (1, 2)
            assert scene.cluster.container_at(*place[:3]) == "ct-5"
            for index in range(2, 6):
                scene.cluster.stop(f"ct-{index}", 0.0)
            await scene.until_true(lambda: set(world.api.counts(place[0]).values()) == {1})
            kept = [scene.cluster.place_of(f"ct-{index}")[3] for index in range(2)]
            await scene.until_true(lambda: len(live(world, place[0])) == 2)
            assert {alloc["ID"] for alloc in live(world, place[0])} == set(kept)
            assert {name_index(alloc) for alloc in live(world, place[0])} == {0}
            assert not scene.said(ContainerEnded, "ct-0")
            assert not scene.said(ContainerEnded, "ct-1")

        run(scenario)

    def test_a_busy_container_keeps_the_rooms_below_it_and_they_are_used_again(
        self, world: NomadWorld, run: Run
    ) -> None:
        async def scenario(scene: Scene) -> None:
            await self.started(world, scene, 3, ONE_LANE)
            job, _, _, below = scene.cluster.place_of("ct-0")
            scene.cluster.stop("ct-0", 0.0)
            scene.cluster.stop("ct-1", 0.0)
            for ended in ("ct-0", "ct-1"):
                await scene.until(ContainerEnded, ended)
            scene.cluster.start(world.placement("ct-again", 0, ONE_LANE))
            await scene.until(ContainerStarted, "ct-again")
            assert scene.cluster.place_of("ct-again") == (job, 0, 0, below)
            assert world.api.counts(job) == {"lane-0": 3}
            scene.cluster.stop("ct-2", 0.0)
            await scene.until_true(lambda: world.api.counts(job) == {"lane-0": 1})

        run(scenario)

    def test_what_a_container_is_started_with_stands_nowhere_in_the_job(self, world: NomadWorld, run: Run) -> None:
        async def scenario(scene: Scene) -> None:
            script = 'test "$SECRET" = hush-hush && exec sleep 600'
            scene.cluster.start(world.placement("ct-1", 0, SECRET="hush-hush", TEST_SCRIPT=script))
            await scene.until(ContainerStarted, "ct-1")
            assert "hush-hush" not in world.job_text(scene.cluster.place_of("ct-1")[0])
            assert "SECRET" not in scene.door.hellos[0]["environment"]
            assert not scene.said(ContainerEnded, "ct-1")

        run(scenario)

    def test_where_nomad_signs_no_identity_the_agent_has_a_token_for_its_job(self, world: NomadWorld, run: Run) -> None:
        async def scenario(scene: Scene) -> None:
            await self.started(world, scene, 1)
            job = scene.cluster.place_of("ct-0")[0]
            assert scene.door.hellos[0]["join_token"] == join_token_of(job)
            assert join_token_of(job) not in world.job_text(job)

        run(scenario, workload_identity=False)

    def test_where_nomad_signs_identities_the_agent_has_one(self, world: NomadWorld, run: Run) -> None:
        if not world.signs_identities:
            pytest.skip("Nomad signs workload identities from 1.7 on")

        async def scenario(scene: Scene) -> None:
            await self.started(world, scene, 1)
            assert scene.door.hellos[0]["identity"]
            assert not scene.door.hellos[0]["join_token"]

        run(scenario)

    def test_a_gpu_that_no_node_has_is_told_in_words_at_once(self, world: NomadWorld, run: Run) -> None:
        async def scenario(scene: Scene) -> None:
            needs = dataclasses.replace(NEEDS, gpu=("L40S",), cpu_cores=None, memory_mib=None)
            async with asyncio.timeout(5.0):
                scene.cluster.start(world.placement("ct-1", 0, needs))
                told = await scene.until_said(PlacementBlocked)
            assert told == PlacementBlocked("ap-1/embed", "embed wants 1 × L40S; no node has one: 1 node has no GPU")
            scene.cluster.stop("ct-1", 5.0)
            await scene.until(ContainerEnded, "ct-1")
            assert (await scene.until_said(PlacementBlocked, lambda one: not one.why)).function == "ap-1/embed"

        run(scenario)

    def test_an_agent_that_is_killed_loses_its_container_and_the_next_one_gets_the_room(
        self, world: NomadWorld, run: Run
    ) -> None:
        async def scenario(scene: Scene) -> None:
            await self.started(world, scene, 2)
            [pid] = [one["pid"] for one in scene.door.hellos if one["lane"] == 1]
            os.kill(pid, signal.SIGKILL)
            ended = await scene.until(ContainerEnded, "ct-1")
            assert "SIGKILL" in ended.what
            scene.cluster.start(world.placement("ct-next", 1))
            await scene.until(ContainerStarted, "ct-next")
            assert scene.cluster.place_of("ct-next")[1:3] == (1, 0)
            assert not scene.said(ContainerEnded, "ct-0")

        run(scenario)

    def test_a_container_that_ends_by_itself_leaves_its_allocation_running(self, world: NomadWorld, run: Run) -> None:
        async def scenario(scene: Scene) -> None:
            scene.cluster.start(world.placement("ct-1", 0, TEST_SCRIPT="exit 7"))
            ended = await scene.until(ContainerEnded, "ct-1")
            assert (ended.what, ended.tail) == ("exit code 7", "last words")
            scene.cluster.start(world.placement("ct-2", 0))
            await scene.until(ContainerStarted, "ct-2")
            assert len(scene.door.hellos) == 1

        run(scenario)

    def test_a_driver_that_cannot_start_the_agent_is_told_in_words(self, world: NomadWorld, run: Run) -> None:
        async def scenario(scene: Scene) -> None:
            scene.cluster.start(world.placement("ct-1"))
            ended = await scene.until(ContainerEnded, "ct-1")
            assert "could not start it" in ended.what
            assert "/no/such/python" in ended.what

        run(scenario, python="/no/such/python")

    def test_an_agent_that_fails_is_told_with_its_last_lines(self, world: NomadWorld, run: Run) -> None:
        async def scenario(scene: Scene) -> None:
            scene.cluster.start(world.placement("ct-1"))
            ended = await scene.until(ContainerEnded, "ct-1")
            assert "exit code 1" in ended.what
            assert ended.tail == "no luck"

        run(scenario, agent_args=("-c", "raise SystemExit('no luck')"))

    def test_counts_that_others_lower_are_noticed_and_put_right(self, world: NomadWorld, run: Run) -> None:
        async def scenario(scene: Scene) -> None:
            await self.started(world, scene, 1)
            job = scene.cluster.place_of("ct-0")[0]
            world.api.scale(job, "lane-0", 0, "by hand")
            await scene.until(ContainerEnded, "ct-0")
            scene.cluster.start(world.placement("ct-next", 0))
            await scene.until(ContainerStarted, "ct-next")

        run(scenario)

    def test_a_new_spec_is_a_new_job_and_the_old_one_goes_once_it_is_empty(self, world: NomadWorld, run: Run) -> None:
        async def scenario(scene: Scene) -> None:
            await self.started(world, scene, 1)
            old = scene.cluster.place_of("ct-0")[0]
            scene.cluster.start(world.placement("ct-new", 1, dataclasses.replace(NEEDS, memory_mib=24)))
            await scene.until(ContainerStarted, "ct-new")
            assert world.api.counts(old) is not None
            scene.cluster.stop("ct-0", 5.0)
            await scene.until_true(lambda: world.api.counts(old) is None)
            assert not scene.said(ContainerEnded, "ct-new")

        run(scenario)

    def test_registering_comes_without_containers_and_twice_is_no_harm(self, world: NomadWorld, run: Run) -> None:
        async def scenario(scene: Scene) -> None:
            job = await scene.cluster.register(NEEDS)
            assert set(world.api.counts(job).values()) == {0}
            await self.started(world, scene, 2)
            assert await scene.cluster.register(NEEDS) == job
            assert sum(world.api.counts(job).values()) == 2

        run(scenario)

    def test_the_next_leader_finds_what_runs_and_goes_on_with_it(self, world: NomadWorld) -> None:
        async def scenario() -> None:
            door = Door()
            await door.open()
            async with world.opened(door) as first:
                await self.started(world, first, 2)
                places = [first.cluster.place_of(f"ct-{index}") for index in range(2)]
                await first.cluster.leave()
                async with world.opened(door) as second:
                    assert second.cluster.rejoining == 2
                    for writer in list(door.writers.values()):
                        writer.close()
                    found = await second.until_said(ContainerFound, lambda one: one.container == "ct-1")
                    assert (found.app, found.function, found.index) == ("an app", "embed", 1)
                    await second.until_said(ContainerFound, lambda one: one.container == "ct-0")
                    assert [second.cluster.place_of(f"ct-{index}") for index in range(2)] == places
                    second.cluster.stop("ct-1", 0.0)
                    await second.until(ContainerEnded, "ct-1")
                    await second.until_true(lambda: sum(world.api.counts(places[0][0]).values()) == 1)
                    assert not second.said(ContainerEnded, "ct-0")
            await door.close()

        asyncio.run(scenario())

    def test_an_agent_that_is_none_of_ours_is_not_let_in(self, world: NomadWorld, run: Run) -> None:
        async def scenario(scene: Scene) -> None:
            await self.started(world, scene, 1)
            hello = {**scene.door.hellos[0], "alloc": "00000000-0000-0000-0000-000000000000"}
            for wrong in (hello, {**scene.door.hellos[0], "position": 7}):
                reader, writer = await asyncio.open_connection("127.0.0.1", int(scene.door.url.rpartition(":")[2]))
                writer.write(json.dumps(wrong).encode() + b"\n")
                assert await reader.read() == b""
                writer.close()
            assert len(scene.door.refused) == 2

        run(scenario)

    def test_a_drained_node_says_so_of_its_containers(self, world: NomadWorld, run: Run) -> None:
        async def scenario(scene: Scene) -> None:
            await self.started(world, scene, 1)
            world.drain()
            try:
                leaving = await scene.until_said(ContainerLeaving)
                assert leaving.container == "ct-0"
                assert leaving.what == "its node is drained"
            finally:
                world.undrain()

        run(scenario)


def live(world: NomadWorld, job: str) -> list[dict[str, object]]:
    return [alloc for alloc in world.api.allocations(job) if not has_ended(alloc)]
