"""Thresholds: what is shipped is whole, what a user overrides is checked, what is wrong is one line with the key."""

from __future__ import annotations

import contextlib
import string
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from kvmon.alerts import alerts_of, load_thresholds, rule_groups
from kvmon.alerts.thresholds import Thresholds, _described, seconds_of
from kvmon.errors import ConfigError

LIMITS = load_thresholds()


def refused(place: Path, text: str) -> str:
    """What is said against an override; the file's name is taken off."""
    path = place / "mine.yml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError) as raised:
        load_thresholds(path)
    message = str(raised.value)
    assert "\n" not in message and str(path) in message and raised.value.exit_code == 2
    return message.replace(f"{path}: ", "").replace(f"{path}", "FILE")


def test_every_threshold_is_explained() -> None:
    """A unit, a range, why it ends there, and why this value."""
    for entry in LIMITS.described.values():
        assert entry.unit and entry.because and entry.why
        assert entry.choices or (entry.least is not None and entry.most is not None)


def test_every_threshold_is_used() -> None:
    """Another value of it gives other rules."""
    before = rule_groups(LIMITS)
    for name, entry in LIMITS.described.items():
        changed = next(filter(None, (_changed(name, value) for value in (*entry.choices, entry.least, entry.most))))
        assert rule_groups(changed) != before, name


def _changed(name: str, value: object) -> Thresholds | None:
    """With another value for one of them; None where it is none, or does not go with the others."""
    with contextlib.suppress(ConfigError):
        return Thresholds(LIMITS.described, {name: value}) if value not in (None, LIMITS[name]) else None
    return None


def test_an_override_moves_its_alerts_and_nothing_else(tmp_path: Path) -> None:
    """Durations are thresholds like any other."""
    path = tmp_path / "mine.yml"
    path.write_text("engine_down_for: 30s\nverdict_share: 0.5\n", encoding="ascii")
    changed = load_thresholds(path)
    assert {name for name in LIMITS if changed[name] != LIMITS[name]} == {"engine_down_for", "verdict_share"}
    (down,) = [a for a in alerts_of(rule_groups(changed)) if (a.name, a.severity) == ("KvmonEngineDown", "critical")]
    assert down.holds == "30s"


def test_an_empty_file_changes_nothing(tmp_path: Path) -> None:
    """Comments alone are fine."""
    (tmp_path / "mine.yml").write_text("# nothing yet\n", encoding="ascii")
    assert dict(load_thresholds(tmp_path / "mine.yml")) == dict(LIMITS)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("verdict_shar: 0.5", "'verdict_shar' is no threshold: 'kvmon alerts --json' lists them"),
        ("verdict_share: 1.5", "verdict_share is 1.5: give 0.05 to 1, because below a twentieth"),
        ("verdict_share: .nan", "verdict_share is nan: give a number of ratio"),
        ("verdict_share: yes", "verdict_share is True: give a number of ratio"),
        ("verdict_share: much", "verdict_share is 'much': give a number of ratio"),
        ("verdict_share:", "verdict_share is empty: give a number of ratio"),
        ("verdict_for: 90", "verdict_for is 90: give a duration such as 30s, 5m, 1h or 1d"),
        ("verdict_for: 1m30s", "verdict_for is '1m30s': give a duration"),
        ("verdict_for: -5m", "verdict_for is '-5m': give a duration"),
        ("verdict_for: 2h", "verdict_for is '2h': give 0s to 1h, because after an hour everybody knows"),
        ("retries: 2.5", "retries is 2.5: give a whole number of retries"),
        ("slow_wait: 5", "slow_wait is 5: give one of 1.024, 8.192, 65.536"),
        (
            "verdict_for:\n  value: 5m",
            "verdict_for has entries of its own: give the value alone, as in 'verdict_for: 2m'",
        ),
        ("lost_share_critical: 0.001", "lost_share_critical is 0.001 and lost_share_warning is 0.01: give lost_share_"),
        ("verdict_step: 1m\nverdict_window: 30s", "verdict_window is 30s and verdict_step is 1m: give verdict_window"),
        ("verdict_for: 1m\nverdict_for: 5m", "line 2: verdict_for stands twice"),
        ("verdict_for: [", "line 1: "),
        ("- verdict_for", "FILE is no mapping"),
        ("a: &x 1\nb: *x", "an alias"),
        ("verdict_for: !!python/object:os.system 5m", "line 1: "),
    ],
)
def test_what_is_wrong_is_said_with_the_key(tmp_path: Path, text: str, message: str) -> None:
    """Unknown, mistyped, out of range, contradicting, repeated, no YAML."""
    assert message in refused(tmp_path, text)


def test_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    """Missing, a directory, binary, too large."""
    for path in (tmp_path / "missing.yml", tmp_path):
        with pytest.raises(ConfigError, match="cannot read"):
            load_thresholds(path)
    (tmp_path / "binary.yml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match="is no text"):
        load_thresholds(tmp_path / "binary.yml")
    (tmp_path / "large.yml").write_text("#" * (1 << 21), encoding="ascii")
    with pytest.raises(ConfigError, match="larger than"):
        load_thresholds(tmp_path / "large.yml")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: 1", "a has no entries"),
        ("a: {value: 1, unit: x, why: y}", "a: because is missing"),
        ("a: {value: 1, unit: x, why: y, because: z, least: 0}", "a: most is missing"),
        ("a: {value: 1, unit: x, why: y, because: z, least: 0, most: 2, max: 3}", "a: max is unknown"),
        ("a: {value: 5, unit: x, why: y, because: z, least: 0, most: 2}", "a is 5: give 0 to 2, because z"),
    ],
)
def test_a_shipped_file_that_is_not_whole_is_an_error(text: str, message: str) -> None:
    """The file is checked like any other input."""
    with pytest.raises(ConfigError, match=r"shipped\.yml: ") as raised:
        _described(text, "shipped.yml")
    assert message in str(raised.value)


def test_a_key_that_the_rules_need_and_the_file_lacks() -> None:
    """Said with the file and the key."""
    less = {name: entry for name, entry in LIMITS.described.items() if name != "verdict_share"}
    with pytest.raises(ConfigError, match=r"thresholds\.yml: verdict_share is missing"):
        rule_groups(Thresholds(less, {}))


YAML_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(string.printable, max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(string.ascii_letters, max_size=4), inner),
    max_leaves=5,
)


@given(
    st.dictionaries(st.sampled_from(sorted(LIMITS)) | st.text(string.printable, max_size=10), YAML_VALUES, max_size=4)
)
def test_whatever_stands_in_a_file_it_is_taken_or_refused_in_one_line(
    tmp_path_factory: pytest.TempPathFactory, content: dict[str, object]
) -> None:
    """No file makes it raise anything else; what is taken gives rules."""
    path = tmp_path_factory.mktemp("any") / "mine.yml"
    path.write_text(yaml.safe_dump(content), encoding="utf-8")
    try:
        limits = load_thresholds(path)
    except ConfigError as error:
        assert "\n" not in str(error)
    else:
        assert rule_groups(limits)


def test_seconds_of_a_duration() -> None:
    """Of each unit that a threshold may have."""
    assert [seconds_of(text) for text in ("0s", "90s", "5m", "2h", "1d")] == [0, 90, 300, 7200, 86400]
