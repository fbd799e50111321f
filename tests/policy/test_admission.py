"""What a request is foreseen to take on a device."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from predictor.policy.admission import LEAST_ACTIVATION_BYTES, POINTS, Peak, Profile, assumed

MB = 1 << 20
PEAKS = st.lists(st.builds(Peak, st.integers(0, 1000), st.integers(0, 100 * MB)), max_size=40)


def measured(*peaks: tuple[int, int]) -> Profile:
    profile = Profile(0)
    for elements, size_bytes in peaks:
        profile = profile.with_peak(Peak(elements, size_bytes))
    return profile


def test_before_anything_is_measured_a_share_of_the_weights_is_kept_free() -> None:
    profile = assumed(0)
    assert profile.limit == -1
    assert profile.activation_bytes(80 * MB) == 10 * MB
    assert profile.activation_bytes(1000) == LEAST_ACTIVATION_BYTES


def test_up_to_what_was_measured_nothing_more_is_asked_for_and_beyond_it_grows_with_the_elements() -> None:
    profile = measured((10, MB), (100, 4 * MB))
    assert profile.limit == 100
    assert profile.activation_bytes(0, 5) == profile.activation_bytes(0, 100) == 4 * MB
    assert profile.activation_bytes(0, 300) == 12 * MB


def test_of_two_measurements_of_as_many_elements_the_larger_one_counts() -> None:
    profile = measured((10, 3 * MB), (10, 5 * MB), (10, 4 * MB))
    assert profile.peaks == (Peak(10, 5 * MB),)


def test_a_request_that_found_no_memory_is_given_more_and_at_most_the_device_once() -> None:
    profile = measured((100, 4 * MB)).after_exhaustion(60, 4 * MB, 20 * MB)
    assert profile.limit == 59, "such requests ask first from now on"
    assert profile.activation_bytes(0, 59) == 4 * MB
    assert profile.activation_bytes(0, 60) == 8 * MB
    nearly_all = measured((100, 15 * MB)).after_exhaustion(60, 15 * MB, 20 * MB)
    assert nearly_all.activation_bytes(0, 60) == 20 * MB
    more_than_all = nearly_all.after_exhaustion(60, 20 * MB, 20 * MB)
    assert more_than_all.activation_bytes(0, 60) == 40 * MB, "no device has that: refused"


def test_a_measured_success_ends_the_exhaustion() -> None:
    profile = measured((100, 4 * MB)).after_exhaustion(60, 4 * MB, 20 * MB)
    assert profile.with_peak(Peak(50, 2 * MB)).exhausted is not None
    assert profile.with_peak(Peak(60, 7 * MB)).exhausted is None
    assert profile.with_peak(Peak(60, 7 * MB)).limit == 100


@given(PEAKS, st.integers(0, 3000), st.integers(0, 3000))
def test_more_elements_never_take_less_and_nothing_measured_is_forgotten(peaks: list[Peak], one: int, other: int) -> None:
    profile = measured(*peaks)
    small, large = sorted((one, other))
    assert profile.activation_bytes(0, small) <= profile.activation_bytes(0, large)
    assert len(profile.peaks) <= POINTS
    assert all(profile.activation_bytes(0, peak.elements) >= peak.bytes for peak in peaks)
