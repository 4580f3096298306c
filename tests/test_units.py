import pytest

from flexgen_helm.units import format_bytes, parse_bytes


@pytest.mark.parametrize(
    ("num_bytes", "text"),
    [(0, "0 B"), (999, "999 B"), (1234567, "1.23 MB"), (999_999, "1 MB"), (3.1e18, "3.1e+03 PB")],
)
def test_bytes(num_bytes, text):
    assert format_bytes(num_bytes) == text


@pytest.mark.parametrize(
    ("text", "num_bytes"),
    [
        ("16GB", 16 * 10**9),
        ("1.5 GiB", 3 << 29),
        ("4096", 4096),
        ("12 b", 12),
        (" 3kB ", 3000),
        ("2TiB", 2 << 40),
    ],
)
def test_sizes_are_parsed(text, num_bytes):
    assert parse_bytes(text) == num_bytes


@pytest.mark.parametrize("text", ["", "GB", "1 XB", "-1GB", "1,5GB", "1 iB"])
def test_what_is_no_size_is_refused(text):
    with pytest.raises(ValueError, match="write a number and"):
        parse_bytes(text)
