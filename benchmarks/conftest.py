"""Prints the achieved rates below pytest-benchmark's table."""


def pytest_terminal_summary(terminalreporter, config) -> None:
    session = getattr(config, "_benchmarksession", None)
    if session is None or not session.benchmarks:
        return
    groups: dict[str, dict[str, object]] = {}
    for bench in session.benchmarks:
        groups.setdefault(bench.group, {})[bench.params["implementation"]] = bench
    threads = session.benchmarks[0].extra_info.get("threads")
    write = terminalreporter.write_line
    write(f"\nforward and backward, median, {threads} threads; times the speed of eager:")
    write(f"{'case':44}{'compiled':>10}{'genfast':>10}{'GB/s':>10}{'GFLOP/s':>10}")
    for group, rows in sorted(groups.items()):
        if not {"eager", "compiled", "genfast"} <= set(rows):
            continue
        eager = rows["eager"].stats.median
        ratios = [eager / rows[name].stats.median for name in ("compiled", "genfast")]
        rates = [rows["genfast"].extra_info[name] for name in ("GB/s", "GFLOP/s")]
        write(f"{group:44}{ratios[0]:10.2f}{ratios[1]:10.2f}{rates[0]:10.2f}{rates[1]:10.2f}")
