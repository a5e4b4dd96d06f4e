"""How long a seed lot stays alive in the vault, after the seed viability equation of Ellis and Roberts.

The seed bank uses this to decide when a lot is tested next: at half of the time in which its viability is expected to fall to
85 percent, and never later than after ten years.
"""

from math import log10
from statistics import NormalDist

REGENERATE_BELOW = 0.85  # a lot under 85 percent is grown out in the herb garden to win fresh seed
LONGEST_INTERVAL_YEARS = 10

# Species constants: KE and CW describe how seeds answer to moisture, CH and CQ how they answer to temperature.
CONSTANTS = {
    "alpine catchfly": (7.61, 4.19, 0.0329, 0.000478),
    "marsh gentian": (6.84, 3.72, 0.0329, 0.000478),
}


def decay_days(species: str, moisture_percent: float, celsius: float) -> float:
    """Days in which the viability, counted in probits, falls by one."""
    ke, cw, ch, cq = CONSTANTS[species]
    return 10 ** (ke - cw * log10(moisture_percent) - ch * celsius - cq * celsius**2)


def viability(species: str, initial: float, years: float, moisture_percent: float = 5.0, celsius: float = -18.0) -> float:
    """The share of seeds still alive after so many years, from the share that was alive when the lot was stored."""
    normal = NormalDist()
    return normal.cdf(normal.inv_cdf(initial) - years * 365.25 / decay_days(species, moisture_percent, celsius))


def next_test_in_years(species: str, initial: float, moisture_percent: float = 5.0, celsius: float = -18.0) -> float:
    """Half of the time until regeneration, at most ten years."""
    normal = NormalDist()
    probits_to_lose = normal.inv_cdf(initial) - normal.inv_cdf(REGENERATE_BELOW)
    years = probits_to_lose * decay_days(species, moisture_percent, celsius) / 365.25
    return max(0.0, min(LONGEST_INTERVAL_YEARS, years / 2))


if __name__ == "__main__":
    for name in CONSTANTS:
        print(f"{name}: next test in {next_test_in_years(name, initial=0.96):.1f} years")
