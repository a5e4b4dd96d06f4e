"""How fast work goes by the jobs that ended lately, and what that means for those that run and wait."""

from __future__ import annotations

import pytest

from ingest.jobs import Beat
from ingest.pace import Meter, Pace
from tests.ingest import test_catalog
from tests.ingest.test_catalog import accept, entry, generation, source, upload

db = test_catalog.db


async def test_the_pace_is_that_of_the_jobs_that_ended_lately(db):
    pace = Pace(db.database, clock=db.clock)
    assert await pace.per_second() == 0.0
    assert await pace.seconds_for(10, unknown=60) == 60
    await accept(db, *(upload(f"{n}.txt") for n in range(6)))
    gen = await generation(db)
    for _ in range(4):
        job = await db.jobs.claim("w")
        await db.jobs.settle.ingest(job, [entry(gen)], source())
        db.clock.now += 5
    assert await pace.queued() == 2
    assert await pace.per_second() == pytest.approx(4 / 20)
    assert await pace.seconds_for(10, unknown=60) == pytest.approx(50)
    db.clock.now += 100
    assert await pace.per_second() == pytest.approx(0.0, abs=0.05)
    db.clock.now += 100
    assert await pace.per_second() == 0.0


async def test_a_job_that_waits_is_told_the_time_of_those_before_it(db):
    pace = Pace(db.database, clock=db.clock)
    accepted = await accept(db, *(upload(f"{n}.txt") for n in range(5)))
    jobs = await db.jobs.by_id([each.job_id for each in accepted])
    assert await pace.etas(jobs) == {}
    gen = await generation(db)
    done = await db.jobs.claim("w")
    await db.jobs.settle.ingest(done, [entry(gen)], source())
    db.clock.now += 2  # one job in two seconds
    jobs = await db.jobs.by_id([each.job_id for each in accepted])
    etas = await pace.etas(jobs)
    assert etas == {each.job_id: 2.0 * place for place, each in enumerate(accepted[1:], 1)}


async def test_a_job_that_runs_is_told_by_its_own_rate(db):
    pace = Pace(db.database, clock=db.clock)
    [accepted] = await accept(db, upload())
    job = await db.jobs.claim("w")
    assert await db.jobs.renew([Beat(job, stage="embedding", done=10, total=40, rate=None)]) == []
    assert await pace.etas([await db.jobs.job(accepted.job_id)]) == {}
    assert await db.jobs.renew([Beat(job, stage="embedding", done=20, total=40, rate=2.5)]) == []
    now = await db.jobs.job(accepted.job_id)
    assert (now.rate, await pace.etas([now])) == (2.5, {accepted.job_id: 8.0})


def test_the_rate_is_that_of_the_recent_past_and_not_since_the_start():
    meter = Meter(window_seconds=10)
    assert meter.rate(0, 0) is None
    assert meter.rate(100, 1) == 100
    for second in range(2, 40):
        rate = meter.rate(100 + second, second)
    assert rate == pytest.approx(1.0)


def test_a_job_that_stands_still_has_no_rate_and_a_count_that_begins_anew_does_not_confuse_it():
    meter = Meter(window_seconds=10)
    assert [meter.rate(5, second) for second in range(3)] == [None, None, None]
    assert meter.rate(9, 3) == pytest.approx(4 / 3)
    assert meter.rate(0, 4) is None
    assert meter.rate(3, 5) == 3
