"""Quantities with their units, read."""

import pytest

from squall.units import to_bytes_per_second, to_seconds


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("120ms", 0.12), ("0.2ms", 0.0002), (".5s", 0.5), ("7us", 7e-6), ("40s", 40.0), ("1.5 min", 90.0), ("2h", 7200.0)],
)
def test_times(text, seconds):
    assert to_seconds(text) == pytest.approx(seconds, rel=1e-15)


@pytest.mark.parametrize(
    ("text", "bytes_per_second"),
    [("10Gbit", 1.25e9), ("1.25GB", 1.25e9), ("100 Mbit", 12.5e6), ("5GB", 5e9), ("8kbit", 1e3), ("64B", 64.0)],
)
def test_rates_of_bytes(text, bytes_per_second):
    assert to_bytes_per_second(text) == bytes_per_second


@pytest.mark.parametrize("text", ["", "40", "s", "40 parsec", "-1s", "1e3s", "1ms2", "10Gbit", "nan s", "1ep"])
def test_what_is_no_time(text):
    with pytest.raises(ValueError, match="Write a number and its unit"):
        to_seconds(text)


@pytest.mark.parametrize("text", ["", "10", "10gbit", "10Gb", "1GiB", "-1GB", "10ms"])
def test_what_is_no_rate_of_bytes(text):
    """Case matters: Gb is read as bits by some and as bytes by others."""
    with pytest.raises(ValueError, match="Write bits or bytes a second"):
        to_bytes_per_second(text)
