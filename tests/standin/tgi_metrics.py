"""Counts what a TGI router counts, under its metric names, and renders them for Prometheus."""

from bisect import bisect_left
from collections import defaultdict


def growing(start: float, factor: float, count: int) -> list[float]:
    return [start * factor**step for step in range(count)]


buckets = {
    "tgi_request_duration": growing(0.001, 1.5, 30),
    "tgi_request_validation_duration": growing(0.001, 1.5, 30),
    "tgi_request_queue_duration": growing(0.001, 1.5, 30),
    "tgi_request_inference_duration": growing(0.001, 1.5, 30),
    "tgi_request_mean_time_per_token_duration": growing(0.001, 1.5, 30),
    "tgi_batch_inference_duration": growing(0.001, 1.5, 30),
    "tgi_batch_forward_duration": growing(0.001, 1.5, 30),
    "tgi_batch_decode_duration": growing(0.001, 1.5, 30),
    "tgi_batch_filter_duration": growing(0.001, 1.5, 30),
    "tgi_batch_concat_duration": growing(0.001, 1.5, 30),
    "tgi_request_input_length": growing(20.48, 1.5, 12),
    "tgi_request_generated_tokens": growing(20.48, 1.5, 12),
    "tgi_request_max_new_tokens": growing(20.48, 1.5, 12),
    "tgi_request_skipped_tokens": [0.0, 1.0],
    "tgi_batch_next_size": growing(1.0, 2.0, 10),
}


class Metrics:
    def __init__(self) -> None:
        self._counters: defaultdict[tuple[str, str], int] = defaultdict(int)
        self._observed: defaultdict[str, list[float]] = defaultdict(list)
        self.gauges = {
            "tgi_queue_size": 0,
            "tgi_batch_current_size": 0,
            "tgi_batch_current_max_tokens": 0,
            "tgi_batch_max_total_tokens": 0,
        }

    def count(self, name: str, labels: str = "") -> None:
        self._counters[name, labels] += 1

    def observe(self, name: str, value: float) -> None:
        self._observed[name].append(value)

    def render(self) -> str:
        lines: list[str] = []
        for name in sorted({name for name, _ in self._counters}):
            lines.append(f"# TYPE {name} counter")
            lines += [f"{name}{labels} {n}" for (key, labels), n in sorted(self._counters.items()) if key == name]
            lines.append("")
        for name, value in self.gauges.items():
            lines += [f"# TYPE {name} gauge", f"{name} {value}", ""]
        for name, values in sorted(self._observed.items()):
            lines += [*_histogram(name, sorted(values)), ""]
        return "\n".join(lines) + "\n"


def _histogram(name: str, values: list[float]) -> list[str]:
    edges = buckets[name]
    # An observation equal to an edge belongs under it, hence the search just above the edge.
    counts = [bisect_left(values, edge + edge * 1e-12 + 1e-12) for edge in edges]
    lines = [f'{name}_bucket{{le="{edge:g}"}} {count}' for edge, count in zip(edges, counts, strict=True)]
    lines.append(f'{name}_bucket{{le="+Inf"}} {len(values)}')
    return [f"# TYPE {name} histogram", *lines, f"{name}_sum {sum(values)}", f"{name}_count {len(values)}"]
