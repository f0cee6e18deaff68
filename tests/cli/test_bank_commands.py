"""list, show, remove, verify, gc, db upgrade, doctor, report, export: looking after a bank."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from lorabank.bank.bank import Bank
from lorabank.core.errors import ExistsError
from lorabank.core.records import Finding


def test_list_shows_tasks_with_the_score_they_had_when_learnt(run: Any, bank: Bank) -> None:
    shown = run("list")
    assert (shown.code, shown.err) == (0, "")
    lines = shown.out.splitlines()
    assert lines[0] == "bank at bank, base tiny"
    made = bank.snapshot().task("spam").created_at[:10]
    size = f"{bank.snapshot().adapter_of('spam').bytes} bytes"
    ending = ["400", "0.9375", "accuracy", made, *size.split(), "ready"]
    columns = ["#", "task", "labels", "strategy", "r", "rows", "score", "metric", "made", "size", "state"]
    assert lines[2].split() == columns
    assert lines[3].split()[:8] == ["1", "sentiment", "no,", "yes", "olora", "8", "400", "0.8750"]
    assert lines[4].split() == ["2", "spam", "no,", "yes", "olora", "8", *ending]
    assert lines[7].split()[:4] == ["both", "manual", "sentiment,", "spam"]


def test_list_as_json(run: Any, bank: Bank) -> None:
    document = run("list", "--json").document
    assert document["id"] == bank.id
    assert document["base"]["name"] == "tiny"
    assert [(t["position"], t["name"], t["score"]) for t in document["tasks"]] == [
        (1, "sentiment", 0.875),
        (2, "spam", 0.9375),
    ]
    assert document["compositions"][0]["members"] == ["sentiment", "spam"]


def test_an_empty_bank_says_what_to_do_next(run: Any, empty_folder: Path) -> None:
    base = _any_base()._replace(name="tiny\x1b[2J")
    Bank.create(empty_folder / "bank", base)
    shown = run("list")
    assert "no tasks yet\nnext:\n  lorabank add-task NAME --data FILE" in shown.out
    assert "tiny\\x1b[2J" in shown.out
    assert run("list", "--json").document["tasks"] == []


def _any_base() -> Any:
    from lorabank.core.records import BaseModelRecord

    return BaseModelRecord("tiny", "local", None, "c" * 64, "f" * 64, "7" * 64, "float32", "SEQ_CLS", 32, 1000)


def test_no_bank(run: Any) -> None:
    shown = run("list")
    assert (shown.code, shown.out) == (3, "")
    assert shown.err.splitlines()[0].startswith("error: no bank at bank")
    assert "the first task makes one\n    lorabank add-task NAME --data FILE\n" in shown.err


@pytest.mark.parametrize("words", [("-b", "team", "list"), ("list", "-b", "team"), ("--bank=team", "list")])
def test_the_bank_may_stand_before_or_after_the_verb(run: Any, bank: Bank, words: tuple[str, ...]) -> None:
    bank.path.rename("team")
    assert run(*words).code == 0


def test_the_bank_from_the_environment(run: Any, bank: Bank, monkeypatch: pytest.MonkeyPatch) -> None:
    bank.path.rename("team")
    monkeypatch.setenv("LORABANK_BANK", "team")
    assert run("list").code == 0
    assert run("list", "-b", "bank").code == 3
    assert run("-b", "bank", "list").code == 3


def test_show_names_what_to_type_next(run: Any, api: Any) -> None:
    task = {"name": "spam", "task_type": "SEQ_CLS", "labels": ["ham", "spam"]}
    api["show"] = {"task": task, "path": "bank/adapters/aa"}
    shown = run("show", "spam")
    assert "path  bank/adapters/aa" in shown.out
    assert "\n  lorabank predict --task spam TEXT\n" in shown.out
    assert "\n  lorabank export spam FOLDER\n" in shown.out
    api["show"] = {"composition": {"name": "routed"}}
    assert "lorabank predict --composition routed TEXT" in run("show", "routed").out
    assert run("show", "routed", "--json").document == {"composition": {"name": "routed"}}


def test_remove_asks_nobody_when_nobody_is_there(run: Any, bank: Bank) -> None:
    shown = run("remove", "both")
    assert shown.code == 2
    assert "hint: add --yes" in shown.err
    assert [c.name for c in bank.snapshot().compositions] == ["both"]


@pytest.mark.parametrize(("answer", "code", "left"), [("y\n", 0, []), ("n\n", 130, ["both"]), ("", 130, ["both"])])
def test_remove_asks_on_a_terminal(
    run: Any, bank: Bank, monkeypatch: pytest.MonkeyPatch, answer: str, code: int, left: list[str]
) -> None:
    import io

    stdin = io.StringIO(answer)
    monkeypatch.setattr(stdin, "isatty", lambda: True, raising=False)
    monkeypatch.setattr("sys.stdin", stdin)
    assert run("remove", "both").code == code
    assert [c.name for c in bank.snapshot().compositions] == left


def test_remove_with_cascade_shows_then_does(run: Any, bank: Bank) -> None:
    refused = run("remove", "spam", "--yes")
    assert refused.code == ExistsError.exit_code
    planned = run("remove", "spam", "--cascade", "--dry-run", "--json").document
    assert planned["dry_run"] is True
    assert sorted(planned["removed"]) == ["both", "spam"]
    assert len(bank.snapshot().tasks) == 2
    done = run("remove", "spam", "--cascade", "--yes")
    assert done.code == 0
    assert [t.name for t in bank.snapshot().tasks] == ["sentiment"]
    assert bank.snapshot().compositions == ()


def test_verify_is_clean_or_exits_with_8(run: Any, bank: Bank) -> None:
    assert run("verify", "--full").out.startswith("bank is clean (every file read)")
    weights = next(bank.path.glob("adapters/*/adapter_model.safetensors"))
    weights.chmod(0o644)
    weights.write_bytes(weights.read_bytes()[:-1] + b"\x01")
    shown = run("verify", "--full", "--json")
    assert shown.code == 8
    assert shown.document["clean"] is False
    assert shown.document["findings"]
    assert "1 finding in bank" in shown.err


def test_findings_are_escaped(run: Any, api: Any) -> None:
    api["verify"] = (Finding("blob", "x\x1b[2J", "gone", "lorabank gc"),)
    shown = run("verify")
    assert "\x1b" not in shown.out
    assert "x\\x1b[2J" in shown.out


def test_gc_lists_before_it_deletes(run: Any, api: Any) -> None:
    found = SimpleNamespace(paths=("blobs/aa/1", "staging/x"), bytes=1_500_000, lost=())
    api["gc"] = lambda **_: found
    planned = run("gc", "--dry-run")
    assert planned.out == "would delete 2 paths, 1.5 MB\n  blobs/aa/1\n  staging/x\n"
    refused = run("gc")
    assert refused.code == 2
    assert all(arguments["dry_run"] for _, arguments in api.calls)
    done = run("gc", "--yes", "--grace-hours", "0")
    assert done.out == "deleted 2 paths, 1.5 MB\n"
    assert "blobs/aa/1" in done.err
    assert api.called("gc") == {"path": Path("bank"), "dry_run": False, "grace_hours": 0.0}


def test_gc_with_nothing_to_do_asks_nothing(run: Any, bank: Bank) -> None:
    assert run("gc").out == "nothing to delete\n"


def test_db_upgrade(run: Any, api: Any) -> None:
    from lorabank.bank.upkeep.upgrade import UpgradeResult

    api["upgrade"] = UpgradeResult(before="a1", after="a2", backup="bank/backups/a1.db")
    shown = run("db", "upgrade")
    assert shown.out.splitlines()[0] == "upgraded bank"
    assert "backup  bank/backups/a1.db" in shown.out
    api["upgrade"] = UpgradeResult(before="a2", after="a2", backup=None)
    assert run("-b", "team", "db", "upgrade").out == "team is up to date (a2)\n"
    assert run("db", "upgrade", "--dry-run", "--json").document["dry_run"] is True


def test_doctor_report_and_export(run: Any, api: Any) -> None:
    from lorabank.workflows.doctor import Checkup

    api["doctor"] = Checkup((("python", "3.11"), ("torch", "2.13")), (), ())
    assert run("doctor").out == "python  3.11\ntorch   2.13\n"
    facts = {"python": "3.11", "torch": "2.13"}
    empty = {"warnings": [], "findings": [], "commands": []}
    assert run("doctor", "--json").document == {"facts": facts, "repaired": None, **empty}
    api["report"] = lambda path, target, beside, tables: Path(target)
    assert run("report").out == "wrote report.html\n"
    assert run("report", "x.html", "--json").document == {"path": "x.html"}
    words = ("report", "x.html", "a", "b", "--table", "t.tex", "--table", "t.csv")
    assert run(*words).out == "wrote x.html\nwrote t.tex\nwrote t.csv\n"
    assert run(*words, "--json").document == {"path": "x.html", "tables": ["t.tex", "t.csv"]}
    assert api.called("report") == {
        "path": "a", "target": "x.html", "beside": ["b"], "tables": ("t.tex", "t.csv"),
    }  # fmt: skip
    refused = run("report", "x.html", "a", "--bank", "b")
    assert refused.code == 2
    assert "does not use --bank" in refused.err
    from lorabank.workflows.results import ExportResult

    api["export"] = ExportResult(path="out", files=("adapter_config.json",), kind="joined", note="2 adapters in one")
    shown = run("export", "spam", "out", "--own", "--check", "vllm")
    assert "note   2 adapters in one" in shown.out
    assert (api.called("export")["own"], api.called("export")["check"]) == (True, "vllm")
    assert run("export", "spam", "out", "--check", "other").code == 2


def test_the_doctor_finds_repairs_and_exits_with_8_while_findings_remain(run: Any, bank: Bank) -> None:
    assert run("backup", "copy").code == 0
    assert run("doctor").code == 0
    weights = next(bank.path.glob("adapters/*/adapter_model.safetensors"))
    weights.unlink()
    shown = run("doctor")
    assert shown.code == 8
    assert "adapter_model.safetensors is missing" in shown.out
    assert "\n    lorabank doctor --repair\n" in shown.err
    shown = run("doctor", "--repair", "--json")
    assert shown.code == 8
    (name,) = shown.document["repaired"]["set_aside"]
    listed = run("list").out.splitlines()
    assert "damaged" in next(line for line in listed if name in line)
    assert "damaged" in next(line for line in listed if line.startswith("both "))
    refused = run("show", name)
    assert (refused.code, "was set aside" in refused.err) == (8, True)
    shown = run("doctor", "--repair", "--from", "copy")
    assert shown.code == 0
    assert f"brought back\n  {name}" in shown.out
    assert "damaged" not in run("list").out
    assert run("doctor", "--from", "copy").code == 2
    assert run("doctor", "--repair", "--from", "nowhere").code == 3


def test_backup_and_restore(run: Any, bank: Bank) -> None:
    made = run("backup", "--json").document
    assert made["tasks"] == 2
    assert run("remove", "both", "--yes").code == 0
    assert run("remove", "spam", "--yes").code == 0
    planned = run("restore", made["path"], "--dry-run", "--json").document
    assert (planned["dry_run"], planned["back"], planned["gone"]) == (True, ["spam"], [])
    refused = run("restore", made["path"])
    assert (refused.code, "add --yes" in refused.err) == (2, True)
    done = run("restore", Path(made["path"]).name, "--yes")
    assert done.code == 0
    assert "tasks that come back  spam" in done.out
    assert "kept aside" in done.out
    assert [task.name for task in bank.snapshot().tasks] == ["sentiment", "spam"]
    missing = run("restore", "nothing.db", "--yes")
    assert (missing.code, "The bank has: " in missing.err) == (3, True)


@pytest.mark.parametrize("part", ["0/5", "6/5", "1", "1/", "a/b", "1/5/9", "1/0", "-1/5", "9" * 5000 + "/1"])
def test_a_part_that_there_is_not(run: Any, bank: Bank, part: str) -> None:
    shown = run("verify", f"--subset={part}")
    assert (shown.code, shown.out) == (2, "")
    assert "is not n/t" in shown.err


def test_verify_reads_a_part(run: Any, bank: Bank) -> None:
    shown = run("verify", "--subset", "2/3", "--json").document
    assert (shown["clean"], shown["full"], shown["subset"]) == (True, False, "2/3")
    assert "part 2 of 3 read" in run("verify", "--subset", "2/3").out
    assert run("verify", "--subset", "2/3", "--full").code == 2


def test_limits_are_the_table_that_the_code_uses(run: Any) -> None:
    from lorabank.core.limits import LIMITS

    document = run("limits", "--json").document
    assert document["limits"] == [limit._asdict() for limit in LIMITS]
    shown = run("limits").out
    assert "2,147,483,648" in shown
    assert all(limit.meaning in shown for limit in LIMITS)
