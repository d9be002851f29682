"""Signals: noted, then obeyed; handlers are put back; what was ignored stays ignored."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator

import pytest

from rnascl_cli.core.errors import Interrupted
from rnascl_cli.engine.interrupts import raise_on_signal, stop_after_step
from tests.ranks import become

pytestmark = pytest.mark.unit


@pytest.fixture(autouse=True)
def _heard() -> Iterator[None]:
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_the_first_is_noted_the_second_ends(signum: signal.Signals, capfd: pytest.CaptureFixture[str]) -> None:
    with stop_after_step() as stop:
        noted = [stop.signum]
        signal.raise_signal(signum)
        noted.append(stop.signum)
        assert noted == [None, signum]
        assert "stopping after this step; repeat to stop immediately" in capfd.readouterr().err
        with pytest.raises(Interrupted) as ended:
            signal.raise_signal(signum)
    assert ended.value.exit_code == {signal.SIGINT: 130, signal.SIGTERM: 143}[signum]


@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_under_torchrun_a_second_is_not_heeded(
    signum: signal.Signals, count: int, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    if count > 1:
        become(monkeypatch, 0, count)
    else:
        monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    with raise_on_signal():
        with stop_after_step() as stop:
            signal.raise_signal(signum)
            signal.raise_signal(signum)
            signal.raise_signal(signal.SIGTERM)
        assert stop.signum == signum
        signal.raise_signal(signal.SIGTERM)  # torchrun's, while it is told how to go on
    signal.raise_signal(signal.SIGTERM)
    assert capfd.readouterr().err.count("stopping after this step\n") == 1


def test_what_ends_at_once_under_torchrun_is_not_disturbed(monkeypatch: pytest.MonkeyPatch) -> None:
    become(monkeypatch, 1, 2)
    with raise_on_signal():
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGTERM)


def test_handlers_are_put_back() -> None:
    with pytest.raises(ZeroDivisionError), stop_after_step():
        raise ZeroDivisionError
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


def test_sigterm_ends_what_is_no_training_by_an_exception() -> None:
    with raise_on_signal():
        with pytest.raises(Interrupted) as ended:
            signal.raise_signal(signal.SIGTERM)
        with stop_after_step() as stop:
            signal.raise_signal(signal.SIGTERM)
        assert stop.signum == signal.SIGTERM
        with pytest.raises(KeyboardInterrupt):  # as Python's own handler does
            signal.raise_signal(signal.SIGINT)
    assert ended.value.exit_code == 143


def test_what_nohup_ignores_stays_ignored() -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    with raise_on_signal(), stop_after_step() as stop:
        signal.raise_signal(signal.SIGTERM)
        assert stop.signum is None
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_IGN


def test_another_thread_leaves_signals_alone() -> None:
    found: list[object] = []

    def work() -> None:
        with raise_on_signal(), stop_after_step():
            found.append(signal.getsignal(signal.SIGTERM))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert found == [signal.SIG_DFL]


def test_it_is_no_exception_that_a_handler_of_errors_would_swallow() -> None:
    assert not issubclass(Interrupted, Exception)
