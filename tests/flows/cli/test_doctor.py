"""A record of services that cannot be read is one of the doctor's findings, not its end. integration/ runs it whole."""

from pathlib import Path

from flows.cli.doctor import _print, _stack
from flows.doctor.verdicts import Verdict


def test_a_damaged_record_of_services_is_a_finding(tmp_path: Path) -> None:
    assert _stack(tmp_path) == []
    (tmp_path / "services.json").write_text("{")
    (finding,) = _stack(tmp_path)
    assert not finding.answers and "services.json is damaged" in finding.detail


def test_advice_stands_below_the_table(capsys) -> None:
    good = Verdict(check="memory", state="ok", detail="16 GiB", advice="")
    bad = Verdict(check="disk", state="fails", detail="1 GiB [left]", advice="free some space")
    _print([good], "igpt 1.2.3")
    assert capsys.readouterr().out.splitlines()[-1] == "Everything is fine."
    _print([good, bad], "igpt 1.2.3")
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "igpt 1.2.3"
    assert [line.split()[0] for line in lines[2:5]] == ["check", "memory", "disk"] and "1 GiB [left]" in lines[4]
    assert lines[-2:] == ["What to do:", "  disk (fails): free some space"]
