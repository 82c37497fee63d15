"""Interleaved rounds and their statistics (docs/decisions/0012-interleaved-rounds.md), for the benchmarks in Python."""

import math
import random
import re
import statistics


def quantile(values, q):
    values = sorted(values)
    place = q * (len(values) - 1)
    below = int(place)
    above = min(below + 1, len(values) - 1)
    return values[below] + (place - below) * (values[above] - values[below])


def median_interval(values):
    """95 % interval of the median, by ranks."""
    half = 0.98 * math.sqrt(len(values)) / max(len(values) - 1, 1)
    return quantile(values, max(0.0, 0.5 - half)), quantile(values, min(1.0, 0.5 + half))


QUIET = 0.05  # an A/A spread at which no more rounds are needed


def interleaved(variants, rounds, warm_up, time_us, most_rounds=0):
    """{variant: microseconds of each round}; a round times every variant once, in random order. Up to `most_rounds` of them
    while "libvar" and "libvar_again" differ by more than QUIET: whether a ratio is decided depends on the machine alone, not
    on the ratio."""
    samples = {name: [] for name in variants}
    order = list(variants)
    for index in range(max(rounds, most_rounds) + warm_up):
        done = index - warm_up
        if done >= rounds and aa_spread(samples, "libvar", "libvar_again") <= QUIET:
            break
        random.shuffle(order)
        for name in order:
            us = time_us(name)
            if done >= 0:
                samples[name].append(us)
    return samples


def describe_times(result, name, times):
    result[f"us/{name}/median"] = statistics.median(times)
    result[f"us/{name}/min"] = min(times)
    result[f"us/{name}/p10"], result[f"us/{name}/p90"] = quantile(times, 0.1), quantile(times, 0.9)


def describe_ratio(result, a, b, samples):
    """Median over rounds of the quotient within a round, with its interval."""
    quotients = [x / y for x, y in zip(samples[a], samples[b])]
    result[f"ratio/{a}/{b}"] = statistics.median(quotients)
    result[f"ratio_low/{a}/{b}"], result[f"ratio_high/{a}/{b}"] = median_interval(quotients)


def aa_spread(samples, once, again):
    low, high = median_interval([a / b for a, b in zip(samples[once], samples[again])])
    return max(abs(low - 1), abs(high - 1))


def cpu_name():
    with open("/proc/cpuinfo", encoding="utf-8") as file:
        found = re.search(r"model name\s*: (.*)", file.read())
    return found.group(1) if found else "unknown"
