"""``./edge-effdet VERB``: what a bundle and an installation offer on the device.

The entry of a bundle starts this with ``--bundle DIR`` before the verb, from the wheel in the bundle; the entry of an installation with
``--store DIR``, in the environment of the version that runs.
"""

from __future__ import annotations

import argparse
import difflib
import json
import logging
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from edge_effdet.artifacts.reading import to_json
from edge_effdet.cli import Result, add_options, make_parser, options_from, run_verb, table, version_text
from edge_effdet.device.install import Installed, bundle_json, install, read_given_keys
from edge_effdet.device.integrity import verify_installed
from edge_effdet.device.manifest import Bundle, read_bundle, read_manifest
from edge_effdet.device.options import InstallOptions, PlaceOptions, RollbackOptions, UninstallOptions
from edge_effdet.device.restart import manager_of
from edge_effdet.device.rollback import rollback, uninstall
from edge_effdet.device.service.status import describe_service
from edge_effdet.device.signature import require_trusted
from edge_effdet.device.steps import run_program
from edge_effdet.device.store import Store
from edge_effdet.errors import InputError, UsageError

logger = logging.getLogger("edge_effdet.device")

VERBS = {
    "install": "install a bundle, or update to it: check, build the engine, prove it, switch",
    "verify": "see that everything is what it was, and that the engine finds what it found where it was proven",
    "run": "run the installed engine in the foreground, for ever; the service does this",
    "rollback": "return to the version before",
    "status": "what runs and how it does",
    "uninstall": "stop the service and remove all versions",
}


@dataclass(frozen=True, slots=True)
class Caller:
    """What the verbs were started from.

    Attributes:
        bundle: the bundle whose entry started them; None elsewhere.
        store: the folder of the installation whose entry started them; None elsewhere.
    """

    bundle: Path | None = None
    store: Path | None = None

    @property
    def program(self) -> str:
        """How a person starts the verbs."""
        if self.store is not None:
            return str(self.store / "edge-effdet")
        return "./edge-effdet" if self.bundle is not None else "python -m edge_effdet.device"

    @property
    def name(self) -> str | None:
        """The name of the installation that is meant, where it is known; an installation of nothing else is touched then."""
        if self.store is not None:
            return self.store.name
        return None if self.bundle is None else read_manifest(self.bundle).name


def main(argv: Sequence[str] | None = None) -> int:
    """Run a verb and return its exit code; without one, or with ``--help``, list them."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    caller = Caller()
    if len(arguments) > 1 and arguments[0] == "--bundle":
        caller, arguments = Caller(bundle=Path(arguments[1])), arguments[2:]
    elif len(arguments) > 1 and arguments[0] == "--store":
        caller, arguments = Caller(store=Path(arguments[1])), arguments[2:]
    verb, rest = (arguments[0], arguments[1:]) if arguments else ("--help", [])
    if verb in VERBS:
        make, run = _PARTS[verb]
        return run_verb(make(caller), partial(run, caller), rest)
    return run_verb(make_parser("", "", ""), lambda _: _without_a_verb(caller, verb), [])


def _without_a_verb(caller: Caller, given: str) -> Result:
    """What the program itself has to say. Raises UsageError where it lacks the verb."""
    if given in ("-h", "--help"):
        verbs = [f"  {name:<11}{text}" for name, text in VERBS.items()]
        example = f"  {caller.program} install --help"
        return Result("\n".join([f"usage: {caller.program} VERB [options]", "", *verbs, "", "example:", example]))
    if given == "--version":
        return Result(version_text())
    (nearest,) = difflib.get_close_matches(given, VERBS, n=1, cutoff=0)
    raise UsageError(f"There is no verb {given!r}; the nearest is {nearest}, and --help lists all.")


def _parser(caller: Caller, verb: str, example: str, named: bool = True) -> argparse.ArgumentParser:
    """A parser; ``named`` adds the name of the installation, where it is not known."""
    about = VERBS[verb]
    program = f"{caller.program} {verb}"
    parser = make_parser(verb, f"{about[0].upper()}{about[1:]}.", f"{program} {example}".strip(), prog=program)
    if named and caller.bundle is None and caller.store is None:
        parser.add_argument("--name", help="the installation (default: the only one that there is)")
    return parser


def _placed(caller: Caller, options: Any) -> Any:
    """The options with the root of the installation whose entry was started."""
    if caller.store is None:
        return options
    if options.root is not None and options.place != caller.store.parent:
        raise UsageError(
            f"This is the entry of the installation in {caller.store}, so `root` {options.root} makes no sense; leave it out."
        )
    return replace(options, root=caller.store.parent)


def _name(caller: Caller, arguments: argparse.Namespace) -> str | None:
    return caller.name or getattr(arguments, "name", None)


def _store(caller: Caller, arguments: argparse.Namespace) -> Store:
    place = _placed(caller, options_from(PlaceOptions, arguments)).place
    return Store.find(place, _name(caller, arguments))


def _make_install(caller: Caller) -> argparse.ArgumentParser:
    parser = _parser(caller, "install", "--source /dev/video0", named=False)
    if caller.bundle is None:
        parser.add_argument("bundle", type=Path, metavar="BUNDLE", help="the folder of a bundle, or its archive")
    add_options(parser, InstallOptions)
    return parser


def _run_install(caller: Caller, arguments: argparse.Namespace) -> Result:
    options = _placed(caller, options_from(InstallOptions, arguments))
    source = caller.bundle or arguments.bundle
    done = install(source, options, into=None if caller.store is None else caller.store.name)
    data = {
        "store": str(done.store),
        "version": done.version,
        "before": done.before,
        "plan": list(done.plan),
        "done": list(done.done),
        "skipped": list(done.skipped),
        "engine": None if done.engine is None else str(done.engine),
        "report": dict(done.report),
        "bundle": bundle_json(done.bundle),
    }
    return Result(_describe_install(done), data)


def _describe_install(done: Installed) -> str:
    if done.plan:
        lines = [f"{number:>2}. {line}" for number, line in enumerate(done.plan, 1)]
        return "\n".join(
            [f"an installation of {done.version} into {done.store} would do this:", *lines, "", "nothing was changed"]
        )
    rows = [("installed", done.version), ("in", str(done.store)), ("before", done.before or "nothing")]
    golden, latency = done.report.get("golden"), done.report.get("latency")
    if golden:
        differ, allowed = 100 * golden["distance"], 100 * golden["tolerance"]
        rows.append(
            ("golden pictures", f"the scores differ by {differ:.1f} % from the host's, and {allowed:.0f} % are allowed")
        )
    else:
        rows.append(("golden pictures", "none are in the bundle, so nothing was compared"))
    if latency:
        rows.append(("network", f"{latency['median_ms']:.2f} ms (the median of {latency['runs']} runs)"))
    rows.append(("engine", str(done.engine)))
    head = [("step", "done"), *rows]
    skipped = f"\nnothing had to be done for {', '.join(done.skipped)}" if done.skipped else ""
    return f"{table(head)}{skipped}\n\nnext: {done.store / 'edge-effdet'} status"


def _make_verify(caller: Caller) -> argparse.ArgumentParser:
    parser = _parser(caller, "verify", "")
    add_options(parser, PlaceOptions)
    if caller.bundle is not None:
        parser.add_argument(
            "--public-key", metavar="KEY", help="a public key of minisign to trust, a file or its second line"
        )
        parser.add_argument(
            "--require-signature", action="store_true", help="refuse a bundle that no trusted key signed"
        )
    return parser


def _run_verify(caller: Caller, arguments: argparse.Namespace) -> Result:
    if caller.bundle is None:
        return _verify_store(_store(caller, arguments))
    options, given = options_from(PlaceOptions, arguments), read_given_keys(arguments.public_key)
    # Before a word of the bundle is believed: its name says where the trusted keys are.
    bundle = read_bundle(caller.bundle)
    store = Store.at(options.place, bundle.manifest.name)
    keys = tuple(dict.fromkeys([*store.trusted_keys(), *given]))
    signed_by = require_trusted(bundle.path, keys, arguments.require_signature or bool(keys))
    bundle = replace(bundle, signed_by=signed_by)
    rows = [
        ("bundle", bundle.id),
        ("files", "all are what they were when it was made"),
        ("signature", _signature(bundle)),
    ]
    data: dict[str, Any] = {"bundle": bundle_json(bundle), "installed": None}
    if store.exists and store.current() is not None:
        inside = _ask_installed(store)
        data["installed"] = inside
        rows.append(("installed", f"{inside['version']} in {store.folder}: right"))
    return Result(table([("verified", ""), *rows]), data)


def _signature(bundle: Bundle) -> str:
    return f"right, by {bundle.signed_by}" if bundle.signed_by else "not checked: no key is trusted here"


def _ask_installed(store: Store) -> dict[str, Any]:
    """Let the installed version verify itself: here there is no backend."""
    current = store.current()
    assert current is not None
    done = run_program(
        [current.python, "-I", "-m", "edge_effdet.device", "--store", store.folder, "verify", "--json"], answers=True
    )
    if done.code == 0:
        return json.loads(done.answer)
    raise done.as_error(f"The installed version is not right: {done.complaint or 'it gave no reason'}")


def _verify_store(store: Store) -> Result:
    verified = verify_installed(store)
    # What needs NumPy is imported when everything that it is imported from was found right.
    from edge_effdet.device.engine import check_installed

    check = check_installed(verified.version.engine)
    rows = [
        ("version", verified.version.id),
        ("files of the bundle", f"{verified.bundle_files} are what they were"),
        (
            "files of the environment",
            f"{verified.environment_files} are those of the wheels"
            if verified.environment_files
            else "not compared: the packages came from an index",
        ),
        (
            "signature",
            f"right, by {verified.signed_by}"
            if verified.signed_by
            else "not checked: it was installed without a trusted key",
        ),
        ("engine and record", "as they were built"),
        (
            "golden pictures",
            "none"
            if check is None
            else f"the scores differ by {100 * check.distance:.1f} %, and {100 * check.tolerance:.0f} % are allowed",
        ),
    ]
    data = {
        "version": verified.version.id,
        "bundle_files": verified.bundle_files,
        "environment_files": verified.environment_files,
        "signed_by": verified.signed_by,
        "golden": None if check is None else check.to_dict(),
    }
    return Result(table([("verified", ""), *rows]), data)


def _make_run(caller: Caller) -> argparse.ArgumentParser:
    parser = _parser(caller, "run", "")
    add_options(parser, PlaceOptions)
    return parser


def _run_run(caller: Caller, arguments: argparse.Namespace) -> Result | None:
    store = _store(caller, arguments)
    if caller.store is None:
        # The environment of the version has what the engine needs; this one may have nothing.
        current = store.current()
        if current is None:
            raise InputError(f"No version is installed in {store.folder}; run ./edge-effdet install in a bundle.")
        command = [str(current.python), "-I", "-m", "edge_effdet.device", "--store", str(store.folder), "run"]
        os.execv(command[0], command)
    cut_off = store.cut_off()
    if cut_off:
        logger.warning("%s", cut_off)
    from edge_effdet.device.service.loop import serve

    serve(store.folder)
    return None


def _make_rollback(caller: Caller) -> argparse.ArgumentParser:
    parser = _parser(caller, "rollback", "")
    add_options(parser, RollbackOptions)
    return parser


def _run_rollback(caller: Caller, arguments: argparse.Namespace) -> Result:
    done = rollback(_name(caller, arguments), _placed(caller, options_from(RollbackOptions, arguments)))
    text = (
        f"{done.version} runs again, {done.service}"
        if done.service == "healthy"
        else f"{done.version} is the current version again; {done.service}"
    )
    return Result(f"{text} (before: {done.left or 'nothing'})", to_json(replace(done, store=str(done.store))))


def _make_status(caller: Caller) -> argparse.ArgumentParser:
    parser = _parser(caller, "status", "")
    add_options(parser, PlaceOptions)
    return parser


def _run_status(caller: Caller, arguments: argparse.Namespace) -> Result:
    store = _store(caller, arguments)
    manager = manager_of(store, "auto") if store.service_kind() else None
    return describe_service(store, None if manager is None else manager.is_running())


def _make_uninstall(caller: Caller) -> argparse.ArgumentParser:
    parser = _parser(caller, "uninstall", "")
    add_options(parser, UninstallOptions)
    return parser


def _run_uninstall(caller: Caller, arguments: argparse.Namespace) -> Result:
    options = _placed(caller, options_from(UninstallOptions, arguments))
    store = _store(caller, arguments)
    left = uninstall(_name(caller, arguments), options)
    text = f"removed all versions from {store.folder}"
    if left:
        text += f"; left there: {', '.join(left)}"
    return Result(text, {"store": str(store.folder), "left": left})


_PARTS: dict[
    str, tuple[Callable[[Caller], argparse.ArgumentParser], Callable[[Caller, argparse.Namespace], Result | None]]
] = {
    "install": (_make_install, _run_install),
    "verify": (_make_verify, _run_verify),
    "run": (_make_run, _run_run),
    "rollback": (_make_rollback, _run_rollback),
    "status": (_make_status, _run_status),
    "uninstall": (_make_uninstall, _run_uninstall),
}


if __name__ == "__main__":
    sys.exit(main())
