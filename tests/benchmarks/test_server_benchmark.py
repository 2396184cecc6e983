"""The parts of benchmarks/server.py that could mislead: what is counted, and that nothing stays of an answer."""

import server as benchmark


def test_answers_of_an_instant_server_leave_nothing_behind() -> None:
    with benchmark.instant_server() as address:
        found = benchmark.measure(address, requests=300, concurrency=4)
        drip = benchmark.seconds_of_a_drip(address, 0.3)
    assert found.answered == 300
    assert 1 < found.most_at_once <= 4
    assert found.growth < 300 * benchmark.BYTES_PER_REQUEST
    # Far from the bar, as other tests share the cores.
    assert found.per_processor_second > 150
    assert 0.25 < drip < 0.3 + benchmark.GRACE
    rows = list(benchmark.table([found], drip, 0.3).columns[1].cells)
    assert len(rows) == 6
    bad = benchmark.Result(10, 2, 9, 3, 1.0, 1.0, 10_000)
    assert sum("[red]" in str(cell) for cell in benchmark.table([bad], 9.0, 0.3).columns[1].cells) == 5
